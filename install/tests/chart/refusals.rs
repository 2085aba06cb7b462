//! What is refused, and in which words.

use super::helm::try_render;

const DIGESTS: &str = "image=registry.example/sluice@sha256:0000000000000000000000000000000000000000000000000000000000000000,\
                       imageDigest=sha256:1111111111111111111111111111111111111111111111111111111111111111";

#[test]
#[ignore = "needs helm: make chart-test"]
fn mistakes_are_refused_and_named() {
    let table: &[(&str, &[&str])] = &[
        ("cniBinDirectory=/opt/cni/bin", &["cniBinDirectory", "not allowed"]),
        ("install.waay=auto", &["/install", "waay", "not allowed"]),
        ("config.dnsCaptur=true", &["/config", "dnsCaptur", "not allowed"]),
        ("cni.nope=1", &["/cni", "nope", "not allowed"]),
        ("platform=gek", &["/platform", "must be one of", "'gke'"]),
        ("global.platform=gek", &["/global/platform", "must be one of"]),
        ("platform=k3s,global.platform=gke", &["platform is k3s and global.platform is gke"]),
        ("excludeNamespaces=kube-system", &["/excludeNamespaces", "want array"]),
        ("ambient.dnsCapture=maybe", &["/ambient/dnsCapture", "want boolean"]),
        ("config.holdTimeoutSeconds=-1", &["/config/holdTimeoutSeconds", "minimum"]),
        ("install.way=sideways", &["/install/way", "'drop-in'"]),
        ("install.onTerm=perhaps", &["/install/onTerm", "'ask'"]),
        ("seccomp.type=Strict", &["/seccomp/type", "'RuntimeDefault'"]),
        ("cniConfDir=etc/cni/net.d", &["/cniConfDir", "does not match"]),
        ("cniBinDir=/usr/local/bin", &["where the image has its own programs"]),
        ("ambient.enabled=false", &["ambient.enabled is false", "istio-cni"]),
        ("logging.level=cni-agent:loud", &["\"loud\" is no level"]),
        ("imageDigest=sha256:beef", &["/imageDigest", "does not match"]),
        (DIGESTS, &["has a digest, and imageDigest is"]),
        ("config.metricsAddress=", &["config.metricsAddress is empty", "ready"]),
    ];
    for (value, words) in table {
        let Err(why) = try_render(&["--set", value]) else { panic!("{value} was taken") };
        for word in *words {
            assert!(why.contains(word), "{value}: {word:?} is not in:\n{why}");
        }
    }
}
