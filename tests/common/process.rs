//! Real processes: meridian and its origins, started by a test, on ports the system chose, ended when dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::http;

/// How long a test waits for a condition before it fails. Long, for loaded machines; conditions are met much earlier.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The binary under test.
pub fn meridian() -> Command {
    without_manager(Command::new(env!("CARGO_BIN_EXE_meridian")))
}

/// Without what a service manager may have set.
fn without_manager(mut command: Command) -> Command {
    command.env_remove("RUNTIME_DIRECTORY").env_remove("STATE_DIRECTORY").env_remove("NOTIFY_SOCKET");
    command
}

/// Sends a signal by name; returns whether there was such a process.
pub fn kill(pid: u32, signal: &str) -> bool {
    let output = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).output();
    output.expect("kill runs").status.success()
}

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `meridian origin NAME`.
pub struct Origin {
    pub name: String,
    pub address: SocketAddr,
    child: Ended,
}

impl Origin {
    pub fn start(name: &str) -> Origin {
        Origin::start_at(name, ([127, 0, 0, 1], 0).into())
    }

    pub fn start_at(name: &str, address: SocketAddr) -> Origin {
        let mut command = meridian();
        command.args(["origin", name, "--listen", &address.to_string()]);
        Origin::of(name, command)
    }

    fn of(name: &str, mut command: Command) -> Origin {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the origin starts");
        let address = meridian::origin::announced(&mut child).expect("an address");
        Origin { name: name.to_owned(), address, child: Ended(child) }
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.0.kill().expect("it can be killed");
        self.child.0.wait().expect("it ends");
    }

    /// `POST /_control?QUERY`.
    pub async fn control(&self, query: &str) {
        let answer = http::request(self.address, "POST", &format!("/_control?{query}"), &[]).await.expect("control");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// Requests that were not for `/healthz` or `/_…`, and connections that carried at least one of them.
    pub async fn requests(&self) -> u64 {
        let answer = http::request(self.address, "GET", "/_stats", &[]).await.expect("stats");
        let stats: Value = serde_json::from_slice(&answer.body).expect("stats are JSON");
        stats["requests"].as_u64().expect("a count")
    }
}

/// `meridian run` on a configuration in a folder of its own.
pub struct Proxy {
    pub listen: SocketAddr,
    /// What the `[[listen]]` has beside its address.
    more: String,
    folder: tempfile::TempDir,
    child: Ended,
    /// Processes that took over, which are nobody's children.
    successors: Vec<Successor>,
}

/// Ended when dropped, if it is still there.
struct Successor(u32);

impl Drop for Successor {
    fn drop(&mut self) {
        // It may have ended.
        let _ = kill(self.0, "KILL");
    }
}

impl Proxy {
    /// Starts it and waits until it is ready. `config` lacks `[[listen]]` and `[admin]`, which are put before it; `setup` may put
    /// files into the folder first.
    pub async fn start(config: &str, setup: impl FnOnce(&Path)) -> Proxy {
        Proxy::start_on("native", config, setup).await
    }

    /// The same with that `engine`.
    pub async fn start_on(engine: &'static str, config: &str, setup: impl FnOnce(&Path)) -> Proxy {
        Proxy::start_with(&format!("engine = \"{engine}\"\n"), config, setup).await
    }

    /// The same with that beneath its `[[listen]]`.
    pub async fn start_with(more: &str, config: &str, setup: impl FnOnce(&Path)) -> Proxy {
        Proxy::start_by(meridian(), more, config, setup).await
    }

    /// The same, with at most so many open files.
    pub async fn start_limited(files: u32, config: &str, setup: impl FnOnce(&Path)) -> Proxy {
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {files}; exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_meridian"));
        Proxy::start_by(without_manager(command), "", config, setup).await
    }

    async fn start_by(command: Command, more: &str, config: &str, setup: impl FnOnce(&Path)) -> Proxy {
        let mut proxy = Proxy::start_whole(command, |folder| {
            setup(folder);
            whole(more, config, folder)
        })
        .await;
        more.clone_into(&mut proxy.more);
        proxy
    }

    /// The same with a whole configuration, whose admin socket is `admin.sock` in the folder that is given.
    pub async fn start_whole(mut command: Command, config: impl FnOnce(&Path) -> String) -> Proxy {
        let folder = tempfile::tempdir().expect("a folder");
        write(&folder.path().join("meridian.toml"), &config(folder.path()));
        let log = std::fs::File::create(folder.path().join("log")).expect("a log");
        let access = std::fs::File::create(folder.path().join("stdout")).expect("an access log");
        let child = command
            .arg("run")
            .arg("--config")
            .arg(folder.path().join("meridian.toml"))
            .stdout(access)
            .stderr(log)
            .spawn()
            .expect("meridian starts");
        let mut proxy = Proxy {
            listen: ([127, 0, 0, 1], 0).into(),
            more: String::new(),
            folder,
            child: Ended(child),
            successors: Vec::new(),
        };
        proxy.until("ready", async || proxy.admin("/readyz").await.is_some_and(|(status, _)| status == 200)).await;
        let status = proxy.status().await;
        proxy.listen = status["listen"][0].as_str().and_then(|text| text.parse().ok()).expect("a listening address");
        proxy
    }

    /// The folder that holds `meridian.toml`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn config_path(&self) -> PathBuf {
        self.folder.path().join("meridian.toml")
    }

    /// Replaces the configuration by renaming a new file over it.
    pub fn write_config(&self, config: &str) {
        let aside = self.folder.path().join(".meridian.toml.new");
        write(&aside, &whole(&self.more, config, self.folder.path()));
        std::fs::rename(aside, self.config_path()).expect("the new file takes the old one's name");
    }

    /// Sends a signal by name.
    pub fn signal(&self, name: &str) {
        assert!(kill(self.pid(), name));
    }

    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// `meridian upgrade`: whether another process took over, and what was said.
    pub async fn upgrade(&mut self) -> Result<u32, String> {
        let mut command = tokio::process::Command::from(meridian());
        let output = command.arg("upgrade").arg("--config").arg(self.config_path()).output().await.expect("it runs");
        if !output.status.success() {
            assert_eq!(output.status.code(), Some(1));
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = said.split(' ').nth(2).and_then(|pid| pid.parse().ok()).expect("a process id");
        self.successors.push(Successor(pid));
        Ok(pid)
    }

    /// A process that took over without being asked to by [`Proxy::upgrade`].
    pub fn succeeded_by(&mut self, pid: u32) {
        self.successors.push(Successor(pid));
    }

    /// Whether the process still runs.
    pub fn alive(&mut self) -> bool {
        self.child.0.try_wait().expect("it can be asked").is_none()
    }

    /// Waits until it ended and returns its exit code.
    pub async fn ended(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.0.try_wait().expect("it can be asked") {
                return status.code();
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// An admin page over the unix socket.
    pub async fn admin(&self, target: &str) -> Option<(u16, String)> {
        let socket = self.folder.path().join("admin.sock");
        let answer = http::request_unix(&socket, target).await.ok()?;
        Some((answer.status, answer.text()))
    }

    pub async fn status(&self) -> Value {
        let (status, body) = self.admin("/api/status").await.expect("the admin socket answers");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("the status is JSON")
    }

    /// The value of a metric's only series, or of the one with these labels (`name{a="b"}`).
    pub async fn metric(&self, series: &str) -> Option<f64> {
        let (_, page) = self.admin("/metrics").await?;
        let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    pub async fn generation(&self) -> u64 {
        self.metric("meridian_config_generation").await.expect("a generation") as u64
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until the process log says all of it, and returns it: a thread of its own writes it, later than what it tells of.
    pub async fn logged(&self, words: &[&str]) -> String {
        self.until(&words.join(" and "), async || words.iter().all(|word| self.log().contains(word))).await;
        self.log()
    }

    /// The access log.
    pub fn access_log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stdout")).unwrap_or_default()
    }

    /// Waits until `condition` holds; fails with the process log when it does not within [`PATIENCE`].
    pub async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !condition().await {
            assert!(begun.elapsed() < PATIENCE, "waited in vain: {what}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn whole(more: &str, config: &str, folder: &Path) -> String {
    format!(
        "[[listen]]\naddress = \"127.0.0.1:0\"\n{more}\n[admin]\naddress = \"\"\nsocket = \"{}\"\n\n{config}",
        folder.join("admin.sock").display()
    )
}

/// Writes a file as a whole.
pub fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("the file can be written");
}
