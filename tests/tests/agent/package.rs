//! What people install: the Debian package, the systemd unit and the Kubernetes manifests, judged by
//! the tools of those who made the formats, and installed into a copy of this machine.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tests::OrFail as _;
use tests::agent::binary;
use tests::netns::Netns;
use tests::process::wait_until;
use tests::residue::{Residue, TEMP_PREFIX};

/// Largest exposure that `systemd-analyze security` may see, 0 to 10, in tenths.
const EXPOSURE_TENTHS: u32 = 20;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn directory() -> TempDir {
    tempfile::Builder::new()
        .prefix(TEMP_PREFIX)
        .tempdir()
        .or_fail("make a directory")
}

fn said(output: &Output) -> String {
    let text = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&text).into_owned()
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().or_fail("run a program");
    let text = said(&output);
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

/// A tool below `target/tools`, where `cargo xtask setup --tests` puts it.
#[track_caller]
fn tool(path: &str) -> PathBuf {
    let test = std::env::current_exe().or_fail("find the test binary");
    test.ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .map(|target| target.join("tools").join(path))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| panic!("there is no `{path}`: run `cargo xtask setup --tests`"))
}

/// Makes the package of the program under test, with this revision.
fn package(directory: &Path, revision: &str) -> PathBuf {
    // What `cargo xtask deb` does; the program is built already.
    let binary = binary();
    let target = binary
        .ancestors()
        .find(|path| path.file_name().is_some_and(|name| name == "target"))
        .or_fail("the target directory");
    let man = target.join("package/man");
    fs::create_dir_all(&man).or_fail("make a directory");
    run(Command::new(&binary).args(["man", "--all"]).arg(&man));
    for shell in ["bash", "zsh", "fish"] {
        let text = run(Command::new(&binary).args(["completions", shell]));
        let file = target.join(format!("package/ratelimiter.{shell}"));
        fs::write(file, text).or_fail("write completions");
    }
    let file = directory.join(format!("ratelimiter_{revision}.deb"));
    run(Command::new(tool("cargo-deb/bin/cargo-deb"))
        .current_dir(repository())
        .args(["--no-build", "--package", "ratelimiter-userspace"])
        .args(["--profile", "dev", "--fast", "--deb-revision", revision])
        .arg("--output")
        .arg(&file));
    file
}

#[test]
fn the_debian_package_is_clean_and_leaves_nothing() {
    let _residue = Residue::watch();
    let directory = directory();
    let first = package(directory.path(), "1");
    let second = package(directory.path(), "2");

    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(&first));
    for path in [
        "./usr/bin/ratelimiter",
        "./etc/ratelimiter/ratelimiter.toml",
        "./usr/lib/systemd/system/ratelimiter.service",
        "./usr/lib/sysusers.d/ratelimiter.conf",
        "./usr/lib/tmpfiles.d/ratelimiter.conf",
        "./usr/share/man/man1/ratelimiter.1.gz",
        "./usr/share/man/man1/ratelimiter-limits-set.1.gz",
        "./usr/share/bash-completion/completions/ratelimiter",
    ] {
        let path = path.replace("./usr/lib/systemd", "lib/systemd");
        assert!(listed.contains(&path), "no `{path}` in {listed}");
    }

    let lintian = tests::requires::program("lintian", "lintian");
    let output = Command::new(lintian)
        .args(["--allow-root", "--no-cfg", "--tag-display-limit", "0"])
        .arg(&first)
        .output()
        .or_fail("run lintian");
    let text = said(&output);
    let errors: Vec<&str> = text.lines().filter(|line| line.starts_with("E:")).collect();
    assert!(
        errors.is_empty() && !text.contains("internal error"),
        "{text}"
    );
    println!("lintian: 0 errors, {} lines beside", text.lines().count());

    // Installed, upgraded, removed and purged in a copy of this machine's files.
    let machine = Machine::new(directory.path());
    let before = machine.files();
    machine.run(&format!("dpkg --install {}", first.display()));
    let installed = machine.run(
        "ratelimiter --version; getent passwd ratelimiter; ratelimiter \
         config check; dpkg --verify ratelimiter; stat -c %U:%a /etc/ratelimiter/ratelimiter.toml",
    );
    assert!(installed.contains("ratelimiter 0."), "{installed}");
    assert!(installed.contains(":/usr/sbin/nologin"), "{installed}");
    assert!(installed.contains("is valid"), "{installed}");
    assert!(installed.contains("root:644"), "{installed}");
    // A changed configuration survives the upgrade, and the agent's state.
    machine.run(
        "echo '# mine' >> /etc/ratelimiter/ratelimiter.toml; mkdir -p /var/lib/ratelimiter; \
         touch /var/lib/ratelimiter/state",
    );
    machine.run(&format!("dpkg --install {}", second.display()));
    machine
        .run("grep -q mine /etc/ratelimiter/ratelimiter.toml; test -e /var/lib/ratelimiter/state");
    machine.run("dpkg --remove ratelimiter; test -e /etc/ratelimiter/ratelimiter.toml");
    machine.run("dpkg --purge ratelimiter");
    let after = machine.files();
    let left: Vec<&String> = after.difference(&before).collect();
    assert!(left.is_empty(), "a purge leaves {left:?}");
}

/// A copy of this machine's files that can be written to: an overlay, gone with its mounts.
struct Machine {
    inside: Netns,
    root: PathBuf,
}

impl Machine {
    #[track_caller]
    fn new(directory: &Path) -> Self {
        let inside = Netns::new();
        let own = directory.join("machine");
        fs::create_dir_all(&own).or_fail("make a directory");
        inside.sh(&format!("mount -t tmpfs machine {}", own.display()));
        inside.run(|| {
            for part in ["upper", "work", "root"] {
                fs::create_dir(own.join(part)).or_fail("make a directory");
            }
        });
        let root = own.join("root");
        let (upper, work) = (own.join("upper"), own.join("work"));
        inside.sh(&format!(
            "mount -t overlay machine -o lowerdir=/,upperdir={},workdir={} {}",
            upper.display(),
            work.display(),
            root.display()
        ));
        // The packages are below `/tmp`, which may be a mount of its own.
        inside.sh(&format!(
            "mount --bind {} {}",
            directory.display(),
            root.join(directory.strip_prefix("/").unwrap_or(directory))
                .display()
        ));
        inside.sh(&format!("mount -t proc proc {}/proc", root.display()));
        inside.sh(&format!("mount -t sysfs sysfs {}/sys", root.display()));
        inside.sh(&format!("mount -t bpf bpf {}/sys/fs/bpf", root.display()));
        Self { inside, root }
    }

    /// Runs a script inside, to its end; every command must succeed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        let mut command = Command::new("chroot");
        command
            .arg(&self.root)
            .args(["/bin/sh", "-e", "-c"])
            .arg(script.replace("; ", "\n"))
            .env("DEBIAN_FRONTEND", "noninteractive");
        self.inside.prepare(&mut command);
        run(&mut command)
    }

    /// Everything below the directories where a package may leave something.
    fn files(&self) -> std::collections::BTreeSet<String> {
        let found = self.run(
            "find /etc /usr/bin /usr/lib/systemd /lib/systemd /usr/lib/sysusers.d \
             /usr/lib/tmpfiles.d /usr/share/man /usr/share/doc /usr/share/bash-completion \
             /usr/share/zsh /usr/share/fish /var/lib /run /sys/fs/bpf -name '*ratelimiter*' \
             2>/dev/null || true",
        );
        found.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_systemd_unit_is_right_and_hardened() {
    let _residue = Residue::watch();
    let directory = directory();
    let unit = directory.path().join("ratelimiter.service");
    let text = fs::read_to_string(repository().join("packaging/systemd/ratelimiter.service"))
        .or_fail("read the unit");
    // The program is not installed here.
    let text = text.replace("/usr/bin/ratelimiter", &binary().to_string_lossy());
    fs::write(&unit, text).or_fail("write the unit");
    let analyze = tests::requires::program("systemd-analyze", "systemd");
    let verified = run(Command::new(&analyze)
        .args(["verify", "--man=no"])
        .arg(&unit));
    assert!(!verified.contains("ratelimiter.service"), "{verified}");
    let judged = run(Command::new(&analyze)
        .args(["security", "--offline=true", "--no-pager"])
        .arg(&unit));
    let exposure = judged
        .split("exposure level for ratelimiter.service: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .or_fail(&judged);
    println!("exposure {exposure}");
    let tenths: u32 = exposure.replace('.', "").parse().or_fail(exposure);
    assert!(tenths <= EXPOSURE_TENTHS, "{judged}");
}

#[test]
fn the_package_s_user_and_directories_are_enough_for_the_agent() {
    let _residue = Residue::watch();
    tests::requires::bpf();
    let edge = Netns::new();
    let directory = directory();
    // As systemd mounts it.
    edge.sh("mount -o remount,mode=700 /sys/fs/bpf");
    let own = "65534";
    let tmpfiles =
        fs::read_to_string(repository().join("packaging/systemd/tmpfiles.d/ratelimiter.conf"))
            .or_fail("read tmpfiles.conf")
            // The user is made when the package is installed; here another stands for it.
            .replace(" ratelimiter ratelimiter ", " nobody nogroup ");
    let file = directory.path().join("tmpfiles.conf");
    fs::write(&file, tmpfiles).or_fail("write tmpfiles.conf");
    let systemd_tmpfiles = tests::requires::program("systemd-tmpfiles", "systemd");
    edge.sh(&format!(
        "{} --create {}",
        systemd_tmpfiles.display(),
        file.display()
    ));
    let mode = edge.sh("stat -c %U:%a /sys/fs/bpf/ratelimiter");
    assert_eq!(mode.trim(), "nobody:700");

    let state = directory.path().join("state");
    fs::create_dir(&state).or_fail("make a directory");
    std::os::unix::fs::chown(&state, Some(65_534), Some(65_534)).or_fail("give a directory away");
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).or_fail("open it");
    let socket = state.join("admin.sock");
    let mut command = Command::new(tests::requires::program("setpriv", "util-linux"));
    command
        .args([&format!("--reuid={own}"), &format!("--regid={own}")])
        .args(["--clear-groups", "--no-new-privs"])
        .args(["--inh-caps=-all,+bpf,+net_admin,+perfmon"])
        .args(["--ambient-caps=-all,+bpf,+net_admin,+perfmon"])
        .args(["--bounding-set=-all,+bpf,+net_admin,+perfmon"])
        .arg(reachable_binary(directory.path()))
        .args(["agent", "--config"])
        .arg(repository().join("packaging/ratelimiter.toml"))
        .env("RATELIMITER_STATE_DIR", state.join("store"))
        .env("RATELIMITER_ADMIN_SOCKET", &socket);
    let mut agent = edge.spawn(command);
    wait_until("the agent is ready", Duration::from_secs(20), || {
        let ready = tests::http::request(&socket, "GET", "/readyz", None);
        agent.exited().is_some() || ready.is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(agent.exited(), None, "{}", agent.output());
    let pins = edge.run(|| tests::bpffs::pins("/sys/fs/bpf/ratelimiter"));
    assert!(pins.len() > 10, "{pins:?}");
    assert_eq!(agent.terminate(Duration::from_secs(10)), 0);
}

/// A copy of the program that another user can reach.
fn reachable_binary(directory: &Path) -> PathBuf {
    let copy = directory.join("ratelimiter");
    fs::copy(binary(), &copy).or_fail("copy the program");
    copy
}

#[test]
fn the_kubernetes_manifests_are_valid_and_so_is_the_configuration_in_them() {
    let _residue = Residue::watch();
    let directory = directory();
    let manifests = repository().join("deploy/kubernetes/ratelimiter.yaml");
    let python = tool("kubernetes-validate/bin/python");
    let validate = tool("kubernetes-validate/bin/kubernetes-validate");
    let text = run(Command::new(&python)
        .arg(&validate)
        .arg("--strict")
        .arg(&manifests));
    assert!(!text.contains("ERROR"), "{text}");
    // A field that Kubernetes does not know is found, or this test holds nothing.
    let broken = directory.path().join("broken.yaml");
    let whole = fs::read_to_string(&manifests).or_fail("read the manifests");
    fs::write(&broken, whole.replace("hostNetwork:", "hostNetworks:")).or_fail("write");
    let refused = Command::new(&python)
        .arg(&validate)
        .arg("--strict")
        .arg(&broken)
        .output()
        .or_fail("run kubernetes-validate");
    assert!(!refused.status.success(), "{}", said(&refused));

    // kubernetes-validate brings a reader of YAML.
    let read = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let json = run(Command::new(&python)
        .args(["-c", read])
        .stdin(fs::File::open(&manifests).or_fail("open the manifests")));
    let objects: Vec<Value> = serde_json::from_str(&json).or_fail("manifests as JSON");
    let configuration = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap")
        .and_then(|object| object["data"]["ratelimiter.toml"].as_str())
        .or_fail("a configuration");
    let file = directory.path().join("ratelimiter.toml");
    fs::write(&file, configuration).or_fail("write a configuration");
    let checked = run(Command::new(binary()).args(["config", "check"]).arg(&file));
    assert!(checked.contains("is valid"), "{checked}");
    for example in ["ratelimiter.toml", "envoy-rls/ratelimiter.toml"] {
        let example = repository().join("examples").join(example);
        run(Command::new(binary())
            .args(["config", "check"])
            .arg(example));
    }
}
