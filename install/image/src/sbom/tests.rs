use super::*;
use std::collections::HashSet;

const TARGET: &str = "x86_64-unknown-linux-musl";

fn product() -> Spec {
    Spec::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("sluice.yaml")).unwrap()
}

fn image(spec: &Spec) -> Image {
    Image::new(spec, Architecture::Amd64, &[], &BTreeMap::new(), 0).unwrap()
}

fn of(packages: &[&str]) -> Value {
    let spec = Spec { packages: packages.iter().map(|&package| package.to_owned()).collect(), ..product() };
    let linked = Linked::ask(&spec.packages, TARGET).unwrap();
    linked.document(&spec, &image(&spec), Architecture::Amd64, 0)
}

fn names(document: &Value) -> HashSet<String> {
    let components = document["components"].as_array().unwrap();
    components.iter().map(|component| component["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn it_names_what_is_linked_and_not_what_builds() {
    let plugin = names(&of(&["sluice-cni"]));
    for linked in ["sluice-cni", "sluice-shared", "serde_json", "nix", "rust-std"] {
        assert!(plugin.contains(linked), "{linked} is missing");
    }
    // A procedural macro, a test's, another program's.
    for other in ["serde_derive", "tempfile", "tokio", "sluice-agent"] {
        assert!(!plugin.contains(other), "{other} is not linked");
    }
}

#[test]
fn every_component_can_be_looked_up_and_every_edge_leads_somewhere() {
    let document = of(&["sluice-cni", "sluice-install"]);
    let components = document["components"].as_array().unwrap();
    let mut refs: HashSet<_> = components.iter().map(|c| c["bom-ref"].as_str().unwrap()).collect();
    assert_eq!(refs.len(), components.len(), "a component is there twice");
    for component in components {
        assert!(component["purl"].as_str().unwrap().starts_with("pkg:"));
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
        let ours = component["name"].as_str().unwrap().starts_with("sluice-");
        let std = component["name"] == "rust-std";
        assert_eq!(component["hashes"][0]["content"].is_string(), !ours && !std, "{component}");
    }
    refs.insert("image");
    for edge in document["dependencies"].as_array().unwrap() {
        assert!(refs.contains(edge["ref"].as_str().unwrap()));
        for on in edge["dependsOn"].as_array().unwrap() {
            assert!(refs.contains(on.as_str().unwrap()), "{on} is no component");
        }
    }
    let image = &document["dependencies"][0]["dependsOn"];
    assert_eq!(image.as_array().unwrap().len(), 2, "the image is its two programs: {image}");
}

#[test]
fn the_image_is_named_by_its_digest() {
    let spec = product();
    let document = of(&["sluice-cni"]);
    let expected = format!("pkg:oci/sluice@{}?arch=amd64", image(&spec).digest);
    assert_eq!(document["metadata"]["component"]["purl"], expected);
}

#[test]
fn checksums_are_those_of_the_lock_file() {
    let lock = "version = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n\n\
                [[package]]\nname = \"ours\"\nversion = \"0.1.0\"\n";
    let key = ("a".to_owned(), "1.0.0".to_owned());
    assert_eq!(checksums(lock), BTreeMap::from([(key, "abc".to_owned())]));
}
