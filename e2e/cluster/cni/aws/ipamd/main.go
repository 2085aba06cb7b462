// Command ipamd is what stands in for the daemon of Amazon's VPC CNI, which needs EC2: it answers the plugin aws-cni from a
// file instead of from a VPC. What it does to the node's own network is upstream's: the rules, the routing tables, the
// iptables chains and the marks come from the package that the real daemon calls, with the same environment variables.
//
// Usage: ipamd FILE, in the node's network and mount namespaces. The socket is made when the node is set up.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/aws/amazon-vpc-cni-k8s/pkg/ipamd/datastore"
	"github.com/aws/amazon-vpc-cni-k8s/rpc"
	"google.golang.org/grpc"
)

// socket is where the plugin dials; it has no setting for it.
const socket = "/var/run/aws-node/ipamd.sock"

// Config is the file's content.
type Config struct {
	Node Node `json:"node"`
	// Pods by namespace/name. It is read anew for every pod.
	Pods map[string]Pod `json:"pods"`
}

// Pod is what the VPC gave to one pod.
type Pod struct {
	IPv4 string `json:"ipv4"`
	IPv6 string `json:"ipv6"`
	// Device and Table are those of the ENI that has the address: 0 and 254 for the primary one.
	Device int32 `json:"device"`
	Table  int32 `json:"table"`
	// Branch is the ENI of a pod with security groups of its own.
	Branch *Branch `json:"branch"`
}

// Branch is a branch ENI, which is a VLAN on the node's trunk.
type Branch struct {
	VLAN    int32  `json:"vlan"`
	MAC     string `json:"mac"`
	Gateway string `json:"gateway"`
	Trunk   string `json:"trunk"`
}

// backend answers the plugin.
type backend struct {
	rpc.UnimplementedCNIBackendServer
	file string

	mutex sync.Mutex
	// given by container and interface.
	given map[string]Pod
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: ipamd FILE")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "ipamd:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	config, err := read(file)
	if err != nil {
		return err
	}
	if err := config.Node.setUp(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	rpc.RegisterCNIBackendServer(server, &backend{file: file, given: map[string]Pod{}})
	return server.Serve(listener)
}

func read(file string) (config Config, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return config, err
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return config, fmt.Errorf("%s: %w", file, err)
	}
	return config, nil
}

// AddNetwork gives a pod its address.
func (b *backend) AddNetwork(_ context.Context, asked *rpc.AddNetworkRequest) (*rpc.AddNetworkReply, error) {
	config, err := read(b.file)
	if err != nil {
		return nil, err
	}
	pod, found := config.Pods[asked.K8S_POD_NAMESPACE+"/"+asked.K8S_POD_NAME]
	if !found {
		// The daemon's word for a subnet that has no address left.
		return &rpc.AddNetworkReply{Success: false}, nil
	}
	reply := &rpc.AddNetworkReply{Success: true, IPAllocationMetadata: pod.metadata(), VPCv4CIDRs: config.Node.VPC}
	if branch := pod.Branch; branch != nil {
		trunk, err := net.InterfaceByName(branch.Trunk)
		if err != nil {
			return nil, fmt.Errorf("the trunk %s: %w", branch.Trunk, err)
		}
		reply.PodVlanId, reply.PodENIMAC = branch.VLAN, branch.MAC
		reply.PodENISubnetGW, reply.ParentIfIndex = branch.Gateway, int32(trunk.Index)
	}
	b.mutex.Lock()
	defer b.mutex.Unlock()
	b.given[asked.ContainerID+"/"+asked.IfName] = pod
	return reply, nil
}

// DelNetwork takes it back.
func (b *backend) DelNetwork(_ context.Context, asked *rpc.DelNetworkRequest) (*rpc.DelNetworkReply, error) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	key := asked.ContainerID + "/" + asked.IfName
	pod, found := b.given[key]
	if !found {
		// The plugin knows it by its text, and takes it for success.
		return nil, datastore.ErrUnknownPod
	}
	delete(b.given, key)
	reply := &rpc.DelNetworkReply{Success: true, IPAllocationMetadata: pod.metadata()}
	if pod.Branch != nil {
		reply.PodVlanId = pod.Branch.VLAN
	}
	return reply, nil
}

func (p Pod) metadata() []*rpc.IPAllocationMetadata {
	return []*rpc.IPAllocationMetadata{{IPv4Addr: p.IPv4, IPv6Addr: p.IPv6, DeviceNumber: p.Device, RouteTableId: p.Table}}
}
