package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/aws/amazon-vpc-cni-k8s/pkg/networkutils"
)

// maxENIs is how many ENIs a network card has at most; it is part of how routing tables are numbered.
const maxENIs = 4

// Node is the instance that the daemon would learn of from EC2.
type Node struct {
	Primary ENI   `json:"primary"`
	Others  []ENI `json:"others"`
	// VPC has the ranges that are reached without SNAT.
	VPC []string `json:"vpc"`
	// PodENI says that pods may have security groups of their own; POD_SECURITY_GROUP_ENFORCING_MODE says how.
	PodENI bool `json:"podENI"`
	// IPv6 says that the cluster's pods have IPv6 addresses and no others.
	IPv6 bool `json:"ipv6"`
}

// ENI is one interface of the instance.
type ENI struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Subnet and Table: of all but the primary one.
	Subnet string `json:"subnet"`
	Table  int    `json:"table"`
}

// setUp does to the node what the init container and the daemon do before they let pods in.
func (n Node) setUp() error {
	// The init container: DISABLE_TCP_EARLY_DEMUX goes with security groups for pods.
	settings := map[string]string{"net/ipv4/conf/" + n.Primary.Name + "/rp_filter": "2"}
	if n.PodENI {
		settings["net/ipv4/tcp_early_demux"] = "0"
	}
	if n.IPv6 {
		settings["net/ipv6/conf/all/forwarding"] = "1"
	}
	for key, value := range settings {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	network, err := networkutils.New()
	if err != nil {
		return err
	}
	hardware, err := n.Primary.hardware()
	if err != nil {
		return err
	}
	address := net.ParseIP(n.Primary.Address)
	if address == nil {
		return fmt.Errorf("the primary ENI's address %q", n.Primary.Address)
	}
	if err := network.SetupHostNetwork(n.VPC, hardware, &address, n.PodENI, n.IPv6); err != nil {
		return err
	}
	for _, eni := range n.Others {
		if hardware, err = eni.hardware(); err != nil {
			return err
		}
		if err := network.SetupENINetwork(eni.Address, hardware, 0, eni.Subnet, maxENIs, false, eni.Table, false); err != nil {
			return err
		}
	}
	return nil
}

func (e ENI) hardware() (string, error) {
	link, err := net.InterfaceByName(e.Name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", e.Name, err)
	}
	return link.HardwareAddr.String(), nil
}
