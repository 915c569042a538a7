//! The processes of a demo: origins as children, and the configuration that names them.

#![expect(clippy::disallowed_methods, reason = "a shell: it waits for its children")]

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::origin;

/// Name, latitude, longitude, and the city for people.
const PLACES: [(&str, f64, f64, &str); 3] = [
    ("us-east", 38.95, -77.45, "Ashburn"),
    ("us-west", 45.84, -119.70, "Boardman"),
    ("eu-west", 53.35, -6.26, "Dublin"),
];

/// One origin process. Killed when dropped.
pub(super) struct Origin {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    child: Child,
}

impl Origin {
    /// Starts `meridian origin NAME` and waits for its address.
    fn start(name: &str, listen: SocketAddr) -> Result<Origin, String> {
        let program = std::env::current_exe().map_err(|error| format!("own program not found: {error}"))?;
        let mut child = Command::new(program)
            .args(["origin", name, "--listen", &listen.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("origin {name} did not start: {error}"))?;
        let announced = origin::announced(&mut child).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        });
        let address = announced.map_err(|error| format!("origin {name} {error}"))?;
        Ok(Origin { name: name.to_owned(), address, child })
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is said to anybody.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at the same address.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match Origin::start(&self.name, self.address) {
                Ok(mut fresh) => {
                    std::mem::swap(self, &mut fresh);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Origins and a configuration in a folder of their own, both gone when dropped.
pub(super) struct Stage {
    origins: Vec<Origin>,
    folder: PathBuf,
}

/// How quickly regions are found down and come back.
pub(super) struct Pace {
    interval: &'static str,
    hold: &'static str,
    ramp: &'static str,
    log: &'static str,
}

impl Stage {
    /// For people who try things.
    pub(super) const UNHURRIED: Pace = Pace { interval: "500ms", hold: "10s", ramp: "20s", log: "stdout" };
    /// For the play of half a minute.
    pub(super) const BRISK: Pace = Pace { interval: "250ms", hold: "2s", ramp: "5s", log: "off" };

    /// Starts the origins of `regions` and writes the configuration.
    pub(super) fn build(regions: &[&str], listen: SocketAddr, admin: SocketAddr, pace: Pace) -> Result<Stage, String> {
        let origins = regions.iter().map(|name| Origin::start(name, ([127, 0, 0, 1], 0).into()));
        let origins = origins.collect::<Result<Vec<_>, _>>()?;
        let folder = std::env::temp_dir().join(format!("meridian-demo-{}", std::process::id()));
        let stage = Stage { origins, folder };
        let text = stage.render(listen, admin, &pace);
        std::fs::create_dir_all(&stage.folder)
            .and_then(|()| std::fs::write(stage.config(), text))
            .map_err(|error| format!("{}: {error}", stage.config().display()))?;
        Ok(stage)
    }

    fn render(&self, listen: SocketAddr, admin: SocketAddr, pace: &Pace) -> String {
        let Pace { interval, hold, ramp, log } = pace;
        let mut text = format!(
            "# Written by `meridian demo`. Edit it: a change is in force at once.\n\n\
             [pop]\nname = \"demo\"\n\n\
             [[listen]]\naddress = \"{listen}\"\n\n\
             [admin]\naddress = \"{admin}\"\nsocket = \"{}\"\n\n\
             # The demo's clients say who they are.\n[client_ip]\ntrusted = [\"127.0.0.0/8\"]\n\n\
             [log]\nlevel = \"info\"\naccess = \"{log}\"\n",
            self.folder.join("admin.sock").display(),
        );
        for (name, latitude, longitude, city) in self.places() {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n[regions.{name}]      # {city}\nlocation = [{latitude:?}, {longitude:?}]\n");
        }
        let _ = write!(
            text,
            "\n[services.web]\nsteering = \"nearest\"\n\n\
             [services.web.health]\npath = \"/healthz\"\ninterval = \"{interval}\"\nhold = \"{hold}\"\nramp = \"{ramp}\"\n"
        );
        for origin in &self.origins {
            let _ = write!(text, "\n[services.web.pools.{}]\nendpoints = [\"{}\"]\n", origin.name, origin.address);
        }
        text
    }

    fn places(&self) -> impl Iterator<Item = (&'static str, f64, f64, &'static str)> + '_ {
        PLACES.into_iter().filter(|(name, ..)| self.origins.iter().any(|origin| origin.name == *name))
    }

    /// The configuration's path.
    pub(super) fn config(&self) -> PathBuf {
        self.folder.join("meridian.toml")
    }

    /// The origins.
    pub(super) fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// The origin of that region.
    pub(super) fn origin_mut(&mut self, name: &str) -> Result<&mut Origin, String> {
        self.origins.iter_mut().find(|origin| origin.name == name).ok_or_else(|| format!("no origin {name}"))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
