{{/*
What is said after the installation.
*/}}
{{- define "sluice.notes" -}}
{{- $s := include "sluice.settings" . | fromJson -}}
{{- $v := $s.values -}}
Sluice {{ .Chart.AppVersion }} is on its way to the nodes:

    kubectl -n {{ .Release.Namespace }} rollout status daemonset/sluice-agent

says when every node's agent serves{{ if $v.install.enabled }} and its plugin is chained{{ end }}.

Platform: {{ $s.platform | default "plain Kubernetes" }}. On the nodes: configuration in {{ $s.confDir }}, plugins in {{ $s.binDir }}.
{{- if not $v.install.enabled }}
The plugin is not installed by this release (install.enabled is false).
{{- end }}
{{- if not $s.policies }}
There are no admission policies: whoever takes a node over could annotate pods of other nodes in the agent's name.
{{- end }}
{{- if and (ne .Release.Namespace "kube-system") (not .Values.createNamespace) }}
Where Pod Security is enforced, the namespace needs its label:

    kubectl label namespace {{ .Release.Namespace }} pod-security.kubernetes.io/enforce=privileged
{{- end }}
{{- if not (contains "@" $s.image) }}
{{- if has (splitList ":" $s.image | last) (list "dev" "latest" "main" "master" "nightly") }}
The image {{ $s.image }} is named by a tag that moves, so nodes may run different programs: imageDigest names one.
{{- end }}
{{- end }}
{{- if and $v.install.enabled (eq $s.way "owned") }}
WARNING: the plugin comes into the chain by a list of our own ({{ eq $v.install.way "owned" | ternary "install.way: owned" "istioOwnedCNIConfig: true" }}). Where
cilium-agent has cni.exclusive=true, its default, it takes that list away again each time, and pods start outside the
mesh in between: set cni.exclusive=false there, or install.way=auto{{ if ne $v.install.way "owned" }} and istioOwnedCNIConfig=false{{ end }}, which needs no such list.
{{- end }}
{{- if $s.iptables }}
config.backend is iptables, which runs iptables' programs. Sluice's own image has none, and with it no agent gets ready:
image must name one that has them (docs/install.md, "The backend iptables"). {{ if contains "docker.io/sluice/sluice" $s.image }}It names {{ $s.image }} now.{{ end }}
{{- end }}
{{- if eq $s.seccomp.type "Localhost" }}
Every node needs {{ $s.seccomp.localhostProfile }} below the kubelet's seccomp directory (/var/lib/kubelet/seccomp),
before the pod starts there; the chart has it as files/seccomp.json.
{{- end }}
{{- if hasKey $v "seccompProfile" }}
seccompProfile is set, and comes before seccomp.
{{- end }}
{{- if lt (int $v.terminationGracePeriodSeconds) (int $s.grace) }}
terminationGracePeriodSeconds is {{ $s.grace }}: the installer needs that long to take everything off a node.
{{- end }}
{{- $said := list }}
{{- range $key, $why := .Files.Get "files/without-meaning.yaml" | fromYaml }}
  {{- $found := $v }}
  {{- range splitList "." $key }}
    {{- if kindIs "map" $found }}{{ $found = get $found . }}{{ else }}{{ $found = "" }}{{ end }}
  {{- end }}
  {{- if not (has (toString $found) (list "" "map[]" "<nil>")) }}
    {{- $said = append $said (printf "  %s: %s" $key $why) }}
  {{- end }}
{{- end }}
{{- with $v.image }}
  {{- if or (not (contains "/" .)) (regexMatch "/install-cni([:@]|$)" .) }}
    {{- $said = append $said (printf "  image: %s is Istio's; the image is %s" . $s.image) }}
  {{- end }}
{{- end }}
{{- range $name := keys (omit $v.env "HOST_PROBE_SNAT_IP" "HOST_PROBE_SNAT_IPV6") | sortAlpha }}
  {{- if regexMatch "^(AMBIENT|ALLOW_SWITCH|CHAINED_CNI|CNI|ENABLE_AMBIENT|EXCLUDE|FORCE_IPTABLES|ISTIO|KUBE|MONITORING|MOUNTED_CNI|NATIVE|REPAIR|SYSTEM_NAMESPACE|ZTUNNEL)_" (printf "%s_" $name) }}
    {{- $said = append $said (printf "  env.%s: it is set, and means nothing to Sluice's agent" $name) }}
  {{- end }}
{{- end }}
{{- with $said }}

These values are istio-cni's. They are accepted and change nothing:

{{ join "\n" . }}
{{- end }}
{{- end -}}
