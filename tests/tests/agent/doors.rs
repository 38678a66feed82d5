//! Who may use the API of the real agent.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use tests::OrFail as _;
use tests::agent::Setup;
use tests::http::request_tcp;
use tests::residue::Residue;

use crate::edge::{EDGE, Edge};
use crate::limits::SMALL;

#[test]
fn another_user_of_the_machine_reads_and_changes_nothing() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .argument("--listen=127.0.0.1:9740")
        .start(&edge.edge);
    let mode = std::fs::metadata(agent.socket())
        .or_fail("socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let address = "127.0.0.1:9740".parse().unwrap();
    let ask = || request_tcp(address, "GET", "/v1/clients", &[], None).map(|a| a.status);
    assert_eq!(edge.edge.run(ask).or_fail("ask as root"), 200);

    let nobody = |path: &str| {
        let mut command = Command::new(tests::requires::program("setpriv", "util-linux"));
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "curl"])
            .args(["-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}"])
            .arg(format!("http://127.0.0.1:9740{path}"));
        edge.edge.prepare(&mut command);
        let output = command.output().or_fail("run curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(nobody("/livez"), "200");
    assert_eq!(nobody("/v1/clients"), "401");
    assert_eq!(nobody("/v1/status"), "401");
}

#[test]
fn refuses_a_configuration_that_everybody_may_write() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    assert_eq!(agent.terminate(), 0);
    let open = std::fs::Permissions::from_mode(0o666);
    std::fs::set_permissions(agent.config_path(), open).or_fail("chmod");
    agent.relaunch();
    let status = agent.child().wait(Duration::from_secs(10));
    let said = agent.child().output();
    assert_ne!(status, 0);
    assert!(said.contains("0666"), "{said}");
}

#[test]
fn keeps_two_capabilities_in_effect_and_can_gain_none() {
    let _residue = Residue::watch();
    let edge = Edge::new();
    let mut agent = Setup::new()
        .interface(EDGE)
        .settings(SMALL)
        .start(&edge.edge);
    let path = format!("/proc/{}/status", agent.child().pid());
    let status = std::fs::read_to_string(path).or_fail("read the process's status");
    let field = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(str::trim)
            .or_fail(name)
    };
    let (bpf, net_admin) = (1_u64 << 39, 1_u64 << 12);
    assert_eq!(field("CapEff"), format!("{:016x}", bpf | net_admin));
    assert_eq!(field("CapInh"), "0000000000000000");
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(edge.pings(3), 3);
}
