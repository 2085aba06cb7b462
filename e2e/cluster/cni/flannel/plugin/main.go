// Command flannel is what stands in for flannel's CNI plugin, which the module proxy does not have: it reads what flanneld
// has written about this node, and delegates to the plugin bridge with host-local. It has the configuration keys, the
// defaults and the files of the real one, as flannel documents them, and no code of it. flanneld is the real one.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	defaultSubnetFile = "/run/flannel/subnet.env"
	// defaultDataDir keeps what was delegated at ADD, for DEL: the subnet may be another one by then.
	defaultDataDir = "/var/lib/cni/flannel"
)

// conf is the plugin's entry in the list.
type conf struct {
	types.NetConf
	SubnetFile string         `json:"subnetFile"`
	DataDir    string         `json:"dataDir"`
	Delegate   map[string]any `json:"delegate"`
}

// lease is what flanneld says of this node.
type lease struct {
	networks []string
	subnets  []string
	mtu      int
	ipMasq   bool
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: check}, version.All, "stand-in for flannel's plugin")
}

func add(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	lease, err := readLease(conf.SubnetFile)
	if err != nil {
		return err
	}
	kind, delegated, err := conf.delegation(lease)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(conf.DataDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(conf.DataDir, args.ContainerID), delegated, 0o600); err != nil {
		return err
	}
	result, err := invoke.DelegateAdd(context.Background(), kind, delegated, nil)
	if err != nil {
		return err
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	path := filepath.Join(conf.DataDir, args.ContainerID)
	kind, delegated, err := kept(path)
	if errors.Is(err, fs.ErrNotExist) {
		// Deleted before, or never added.
		return nil
	}
	if err != nil {
		return err
	}
	if err := invoke.DelegateDel(context.Background(), kind, delegated, nil); err != nil {
		return err
	}
	return os.Remove(path)
}

func check(args *skel.CmdArgs) error {
	conf, err := parse(args.StdinData)
	if err != nil {
		return err
	}
	kind, delegated, err := kept(filepath.Join(conf.DataDir, args.ContainerID))
	if err != nil {
		return err
	}
	return invoke.DelegateCheck(context.Background(), kind, delegated, nil)
}

func parse(stdin []byte) (*conf, error) {
	conf := &conf{SubnetFile: defaultSubnetFile, DataDir: defaultDataDir}
	if err := json.Unmarshal(stdin, conf); err != nil {
		return nil, fmt.Errorf("the configuration: %w", err)
	}
	return conf, nil
}

// delegation is the configuration of the plugin that does the work, and its name. What the list says goes first.
func (c *conf) delegation(lease *lease) (string, []byte, error) {
	delegate := map[string]any{"name": c.Name, "cniVersion": c.CNIVersion}
	for key, value := range c.Delegate {
		delegate[key] = value
	}
	byDefault := func(key string, value any) {
		if _, said := delegate[key]; !said {
			delegate[key] = value
		}
	}
	byDefault("type", "bridge")
	byDefault("ipMasq", !lease.ipMasq)
	byDefault("mtu", lease.mtu)
	kind, isString := delegate["type"].(string)
	if !isString {
		return "", nil, fmt.Errorf("delegate.type is %v", delegate["type"])
	}
	if kind == "bridge" {
		byDefault("isGateway", true)
	}
	var ranges, routes []any
	for _, subnet := range lease.subnets {
		// flanneld writes the gateway's address in it.
		_, network, err := net.ParseCIDR(subnet)
		if err != nil {
			return "", nil, err
		}
		ranges = append(ranges, []any{map[string]any{"subnet": network.String()}})
	}
	for _, network := range lease.networks {
		routes = append(routes, map[string]any{"dst": network})
	}
	delegate["ipam"] = map[string]any{"type": "host-local", "ranges": ranges, "routes": routes}
	text, err := json.Marshal(delegate)
	return kind, text, err
}

func kept(path string) (string, []byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	var conf types.NetConf
	if err := json.Unmarshal(text, &conf); err != nil {
		return "", nil, fmt.Errorf("%s: %w", path, err)
	}
	return conf.Type, text, nil
}

// readLease reads the file that flanneld writes: one KEY=VALUE a line.
func readLease(path string) (*lease, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("flanneld has not written its subnet file yet: %w", err)
	}
	defer file.Close()
	var lease lease
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		switch key {
		case "FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK":
			lease.networks = append(lease.networks, value)
		case "FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET":
			lease.subnets = append(lease.subnets, value)
		case "FLANNEL_MTU":
			if lease.mtu, err = strconv.Atoi(value); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		case "FLANNEL_IPMASQ":
			lease.ipMasq = value == "true"
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(lease.subnets) == 0 || lease.mtu == 0 {
		return nil, fmt.Errorf("%s names no subnet or no MTU", path)
	}
	return &lease, nil
}
