//! Descriptions: those that are there, and what is said of wrong ones.

use super::*;

fn topologies() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topologies")
}

#[test]
fn every_description_is_one() {
    let cells = Cell::read_all(&topologies().join("cells")).unwrap_or_else(|why| panic!("{why}"));
    Limit::read_all(&topologies().join("limits.yaml")).unwrap_or_else(|why| panic!("{why}"));
    for cell in cells {
        let pattern = cell.addresses.v4.as_ref().or(cell.addresses.v6.as_ref()).unwrap();
        assert!(crate::matrix::words::address(pattern, cell.addresses.first).is_ok(), "{}", cell.cell);
    }
}

#[test]
fn a_wrong_description_says_where() {
    let good = std::fs::read_to_string(topologies().join("cells/calico-iptables.yaml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calico-iptables.yaml");
    let said = |text: &str| {
        std::fs::write(&path, text).unwrap();
        Cell::read(&path).err().map(|why| why.to_string()).unwrap_or_default()
    };
    assert_eq!(said(&good), "");
    for (from, to, expected) in [
        ("mtu: 1450", "mtu: many", "at mtu:"),
        ("plugins: emulated", "plugins: some", "at plugins:"),
        ("  routes:", "  roads:", "at pod.roads: pod: unknown field `roads`"),
        ("cell: calico-iptables", "cell: calico", "cell: it must be the file's name"),
        ("refuses-rules", "explodes", "at axes.faults[0]:"),
        ("\"plugins\":", "\"plugin\":", "config.text:"),
        ("first: 5, v4: \"10.244.1.{n}/32\",", "first: 5,", "dual without addresses of it"),
    ] {
        let why = said(&good.replacen(from, to, 1));
        assert!(why.contains(expected) && why.contains("calico-iptables.yaml"), "{to:?}: {why:?}");
    }
    let limited = format!("{good}cannot:\n  - {{checks: [probe], because: x, where: {{moon: full}}}}\n");
    assert!(said(&limited).contains("\"moon\" is none of"), "{}", said(&limited));
    let limited = format!("{good}cannot:\n  - {{checks: [prob], because: x}}\n");
    assert!(said(&limited).contains("\"prob\" is none of"), "{}", said(&limited));
}
