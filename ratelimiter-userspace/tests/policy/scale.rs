//! Large documents: 100 000 prefixes and 30 000 clients here; ten times that is measured in a
//! release build (`docs/guarantees.md`).

use ratelimiter_userspace::policy::model::{Client, Document, ListEntry};
use ratelimiter_userspace::policy::plan::{Installed, plan};
use ratelimiter_userspace::policy::resolve::normalise;

use crate::{compiled, install};

fn large(prefixes: u32, clients: u32) -> Document {
    let mut document = Document::default();
    for n in 0..prefixes {
        // A multiplication by an odd number visits every address once.
        let address = std::net::Ipv4Addr::from(n.wrapping_mul(2_654_435_761));
        let list = if n % 10 == 0 {
            &mut document.allow
        } else {
            &mut document.block
        };
        list.insert(
            ipnet::IpNet::from(std::net::IpAddr::V4(address)),
            ListEntry::default(),
        );
    }
    for n in 0..clients {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + n);
        let client = Client {
            sources: vec![ipnet::IpNet::from(std::net::IpAddr::V4(address))],
            ..Client::default()
        };
        document.clients.insert(format!("client-{n}"), client);
    }
    normalise(&mut document);
    document
}

#[test]
fn large_documents_are_planned_in_batches_and_one_change_is_one_change() {
    let mut document = large(100_000, 30_000);
    let mut installed = Installed::default();
    let desired = compiled(&document, &installed);
    assert!(desired.tracked.len() > 29_000);
    let first = plan(&installed, &desired, 1_000);
    assert!(first.updates.len() < 40, "{}", first.updates.len());
    install(&mut installed, &desired, 1_000);
    assert_eq!(*installed.prefixes, *desired.prefixes);
    document
        .block
        .insert("192.0.2.1/32".parse().unwrap(), ListEntry::default());
    let desired = compiled(&document, &installed);
    let next = plan(&installed, &desired, 2_000_000_000);
    assert!(next.updates.len() <= 4, "{:?}", next.updates);
}
