//! What the tests of this binary share: an edge host with one interface, and a client behind it.

use ratelimiter_userspace::dataplane::{
    AttachMode, AttachOptions, DEFAULT_ROOT, OpenOptions, Tables, XdpDataPlane,
};
use tests::OrFail as _;
use tests::netns::{Netns, veth};

/// Interface of the edge.
pub(crate) const EDGE: &str = "edge0";
/// Interface of the client.
pub(crate) const CLIENT: &str = "client0";

/// An edge host and a client, joined by a veth pair, each with an IPv4 and an IPv6 address.
pub(crate) struct Edge {
    pub(crate) edge: Netns,
    pub(crate) client: Netns,
}

impl Edge {
    pub(crate) fn new() -> Self {
        tests::requires::bpf();
        let this = Self {
            edge: Netns::new(),
            client: Netns::new(),
        };
        this.join();
        this
    }

    /// Makes the veth pair (again).
    pub(crate) fn join(&self) {
        veth((&self.edge, EDGE), (&self.client, CLIENT));
        self.edge.address(EDGE, "192.0.2.1/24");
        self.edge.address(EDGE, "2001:db8::1/64");
        self.client.address(CLIENT, "192.0.2.2/24");
        self.client.address(CLIENT, "2001:db8::2/64");
    }

    /// Opens a data plane with small tables in the edge's namespaces.
    pub(crate) fn open(&self) -> XdpDataPlane {
        self.try_open(&small()).or_fail("open the data plane")
    }

    pub(crate) fn try_open(
        &self,
        options: &OpenOptions,
    ) -> Result<XdpDataPlane, ratelimiter_userspace::dataplane::Error> {
        self.edge.run(|| XdpDataPlane::open(options))
    }

    /// Id of the XDP program the kernel says runs on the edge's interface, if any.
    pub(crate) fn running(&self) -> Option<u32> {
        running(&self.edge, EDGE)
    }

    /// Names below the pin directory.
    pub(crate) fn pins(&self) -> Vec<String> {
        self.edge.run(|| tests::bpffs::pins(DEFAULT_ROOT))
    }

    /// Sends `count` pings from the client; returns how many were answered.
    pub(crate) fn pings(&self, count: u32) -> u32 {
        let line = format!("ping -c {count} -i 0.002 -W 1 -q 192.0.2.1");
        let (_, out, _) = self.client.try_sh(&line);
        out.split(", ")
            .find_map(|part| part.strip_suffix(" received"))
            .and_then(|number| number.parse().ok())
            .or_fail("ping's summary")
    }
}

/// Id of the XDP program on an interface, as `ip` tells it.
pub(crate) fn running(netns: &Netns, interface: &str) -> Option<u32> {
    let out = netns.ip(&format!("-d link show {interface}"));
    out.split("prog/xdp id ")
        .nth(1)?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

pub(crate) fn small() -> OpenOptions {
    OpenOptions {
        tables: Tables::small(),
        ..OpenOptions::default()
    }
}

pub(crate) fn native() -> AttachOptions {
    AttachOptions::default()
}

pub(crate) fn generic() -> AttachOptions {
    AttachOptions {
        mode: AttachMode::Generic,
        ..AttachOptions::default()
    }
}
