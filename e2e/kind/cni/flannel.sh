# shellcheck shell=bash
# flannel by its manifest, with the pod network that it is written for, and the plugin that it calls.
cni_problems=''
cni_networking() {
    case $family in
        ipv4) say '  podSubnet: 10.244.0.0/16' ;;
        *) say '  podSubnet: 10.244.0.0/16,fd00:10:244::/56' ;;
    esac
}
cni_install() {
    [ "$family" = ipv4 ] || say "kind: flannel's manifest is for IPv4; pods have no IPv6 addresses here"
    local node
    for node in $nodes; do
        run docker cp "$bridge_plugin" "$node:/opt/cni/bin/bridge"
    done
    kubectl_ apply -f "$flannel_manifest"
    kubectl_ -n kube-flannel rollout status daemonset/kube-flannel-ds "--timeout=$patience"
}
cni_prepare() { :; }
