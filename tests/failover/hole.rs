//! A machine that vanishes, without leave of anybody: a network namespace for the test, one inside it for the region, a pair of
//! virtual cables between them, and a neighbour entry that stays. When the far address is taken away, packets to it still
//! leave and come to nothing: no refusal, no reset, no ICMP.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use crate::common::process::Origin;

/// Set inside of the namespace.
pub const INSIDE: &str = "MERIDIAN_INSIDE_OF_THE_HOLE";

const FAR: &str = "10.213.0.2";

/// What keeps the region's namespace alive.
static KEEPER: Mutex<Option<Child>> = Mutex::new(None);

pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs `inside_of_the_hole` of this test binary in a namespace of its own.
pub fn outside() {
    let inside = Command::new("unshare")
        .arg("-rn")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "inside_of_the_hole", "--ignored", "--nocapture", "--test-threads", "1"])
        .env(INSIDE, "yes")
        .output()
        .expect("unshare (Debian: util-linux) is there");
    let said = format!("{}{}", String::from_utf8_lossy(&inside.stdout), String::from_utf8_lossy(&inside.stderr));
    println!("{said}");
    assert!(inside.status.success() && said.contains("1 passed"), "in the namespace: {said}");
}

fn run(words: &str) {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let output = command.args(words).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// `words` in the region's namespace.
fn there(words: &str) -> String {
    let keeper = KEEPER.lock().unwrap();
    format!("nsenter -t {} -n {words}", keeper.as_ref().expect("the region is there").id())
}

/// The region in its namespace, which is made for the first one.
pub fn origin(name: &str, journal: &Path) -> Origin {
    if KEEPER.lock().unwrap().is_none() {
        run("ip link set lo up");
        let keeper = Command::new("unshare").args(["-n", "sleep", "600"]).stdout(Stdio::null()).spawn().unwrap();
        let id = keeper.id();
        *KEEPER.lock().unwrap() = Some(keeper);
        // It has its own namespace a moment after it was started.
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap() == own {
            std::thread::yield_now();
        }
        run("ip link add near type veth peer name far address 02:00:00:00:00:02");
        run(&format!("ip link set far netns {id}"));
        run("ip addr add 10.213.0.1/24 dev near");
        run("ip link set near up");
        run(&there("ip link set lo up"));
        run(&there("ip link set far up"));
        appear();
        run(&format!("ip neigh replace {FAR} lladdr 02:00:00:00:00:02 dev near nud permanent"));
    }
    let enter = there("");
    let enter: Vec<&str> = enter.split_whitespace().collect();
    Origin::troubled(name, format!("{FAR}:0").parse().unwrap(), journal, &enter)
}

pub fn vanish() {
    run(&there(&format!("ip addr del {FAR}/24 dev far")));
}

pub fn appear() {
    run(&there(&format!("ip addr add {FAR}/24 dev far")));
}

/// Ends what keeps the namespace alive; the rest ends with it.
pub fn close() {
    if let Some(mut keeper) = KEEPER.lock().unwrap().take() {
        let _ = keeper.kill();
        let _ = keeper.wait();
    }
}
