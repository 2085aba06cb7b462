{{/*
What is rendered, after istio-cni's names, the platform and the defaults were taken together. As JSON: each template
begins with `$s := include "sluice.settings" . | fromJson`.

What is set comes first, then the platform's, then the default. A value that would be taken for something else than it
says fails here.
*/}}
{{- define "sluice.settings" -}}
{{- $v := include "sluice.values" . | fromJson -}}
{{- $global := $v.global | default dict -}}
{{- $platform := $v.platform | default $global.platform | default "" -}}
{{- if and $v.platform $global.platform (ne $v.platform $global.platform) -}}
  {{- fail (printf "platform is %s and global.platform is %s: set one of them" $v.platform $global.platform) -}}
{{- end -}}
{{- $p := include "sluice.platform" (dict "files" .Files "name" $platform) | fromJson -}}
{{- if not $v.ambient.enabled -}}
  {{- fail "ambient.enabled is false: Sluice captures pods for ambient mode and has no other; sidecars need istio-cni" -}}
{{- end -}}

{{- $image := $v.image | default "" -}}
{{- if or (not (contains "/" $image)) (regexMatch "/install-cni([:@]|$)" $image) -}}
  {{- $image = printf "docker.io/sluice/sluice:%s" .Chart.AppVersion -}}
{{- end -}}
{{- with $v.imageDigest -}}
  {{- if contains "@" $image -}}
    {{- fail (printf "image is %s, which has a digest, and imageDigest is %s: set one of them" $image .) -}}
  {{- end -}}
  {{- $image = printf "%s@%s" $image . -}}
{{- end -}}
{{- $secrets := list -}}
{{- range concat ($v.imagePullSecrets | default list) ($global.imagePullSecrets | default list) -}}
  {{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}

{{- $strategy := $v.updateStrategy -}}
{{- if hasKey $v "rollingMaxUnavailable" -}}
  {{- $strategy = dict "type" "RollingUpdate" "rollingUpdate" (dict "maxUnavailable" $v.rollingMaxUnavailable) -}}
{{- end -}}

{{- $selinux := $v.seLinuxOptions | default dict -}}
{{- if and $selinux (not $selinux.type) -}}
  {{- $selinux = merge (dict "type" "spc_t") $selinux -}}
{{- else if and (not $selinux) $p.seLinuxType -}}
  {{- $selinux = dict "type" $p.seLinuxType -}}
  {{- with $p.seLinuxUser }}{{ $_ := set $selinux "user" . }}{{ end -}}
  {{- with $p.seLinuxRole }}{{ $_ := set $selinux "role" . }}{{ end -}}
  {{- with $p.seLinuxLevel }}{{ $_ := set $selinux "level" . }}{{ end -}}
{{- end -}}

{{- $seccomp := dict "type" $v.seccomp.type -}}
{{- if eq $v.seccomp.type "Localhost" -}}
  {{- $_ := set $seccomp "localhostProfile" $v.seccomp.localhostProfile -}}
{{- end -}}
{{- $seccomp = $v.seccompProfile | default $seccomp -}}

{{- $newEnough := semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version -}}
{{- $policies := $v.admissionPolicies.enabled -}}
{{- if kindIs "string" $policies }}{{ $policies = $newEnough }}{{ end -}}
{{- $quota := $v.resourceQuotas.enabled -}}
{{- if kindIs "string" $quota -}}
  {{- $quota = and $p.resourceQuota (ne .Release.Namespace "kube-system") -}}
{{- end -}}
{{- $scope := $global.resourceScope | default "all" -}}

{{- $binDir := $v.cniBinDir | default $p.cniBinDir -}}
{{- if hasPrefix "/usr/local/bin" $binDir -}}
  {{- fail (printf "cniBinDir is %s, where the image has its own programs: they would be hidden" $binDir) -}}
{{- end -}}
{{- $runtimeDir := $v.runtimeDir | default $p.runtimeDir -}}

{{- dict
    "values" $v
    "platform" $platform
    "image" $image
    "pullPolicy" ($v.pullPolicy | default $global.imagePullPolicy | default "IfNotPresent")
    "imagePullSecrets" $secrets
    "confDir" ($v.cniConfDir | default $p.cniConfDir)
    "binDir" $binDir
    "netnsDirs" (empty $v.cniNetnsDir | ternary $p.netnsDirs (list $v.cniNetnsDir))
    "runtimeDir" (eq $runtimeDir "none" | ternary "" $runtimeDir)
    "auxiliaryChain" ($v.install.auxiliaryChain | default $p.auxiliaryChain)
    "way" (and (eq $v.install.way "auto") (eq (toString $v.istioOwnedCNIConfig) "true") | ternary "owned" $v.install.way)
    "log" (include "sluice.log" $v | fromJson)
    "updateStrategy" $strategy
    "grace" (max 20 (int $v.terminationGracePeriodSeconds))
    "iptables" (eq (toString $v.config.backend) "iptables")
    "seLinux" $selinux
    "seccomp" $seccomp
    "appArmorField" $newEnough
    "appArmorAnnotation" (or $v.useAppArmorAnnotation (not $newEnough))
    "policies" $policies
    "networkPolicy" (or $v.networkPolicy.enabled (dig "networkPolicy" "enabled" false $global))
    "quota" $quota
    "scc" $p.securityContextConstraints
    "clusterScope" (has $scope (list "all" "cluster"))
    "namespaceScope" (has $scope (list "all" "namespace"))
  | toJson -}}
{{- end -}}

{{/*
The values, with what older charts of istio-cni had below `cni` at its place, and with an empty map where somebody has
written null.
*/}}
{{- define "sluice.values" -}}
{{- $v := deepCopy .Values -}}
{{- with $v.cni }}{{ $v = mergeOverwrite $v . }}{{ end -}}
{{- range list "global" "config" "env" "podLabels" "podAnnotations" "daemonSetLabels" "nodeSelector" "affinity" -}}
  {{- if not (get $v .) }}{{ $_ := set $v . dict }}{{ end -}}
{{- end -}}
{{- with $v.logLevel }}{{ $_ := set $v.logging "level" ($v.logging.level | default .) }}{{ end -}}
{{- omit $v "cni" | toJson -}}
{{- end -}}

{{/*
What a platform says, over the default.
*/}}
{{- define "sluice.platform" -}}
{{- $default := .files.Get "files/platforms/default.yaml" | fromYaml -}}
{{- if .name -}}
  {{- $text := .files.Get (printf "files/platforms/%s.yaml" .name) -}}
  {{- if not $text }}{{ fail (printf "there is no platform %s" .name) }}{{ end -}}
  {{- mergeOverwrite $default (fromYaml $text) | toJson -}}
{{- else -}}
  {{- $default | toJson -}}
{{- end -}}
{{- end -}}

{{/*
The levels of agent and plugin, from a level or from Istio's "scope:level,scope:level".
*/}}
{{- define "sluice.log" -}}
{{- $text := .logging.level | default (dig "global" "logging" "level" "" .) | default "info" -}}
{{- $levels := dict "agent" "info" "plugin" "info" -}}
{{- range splitList "," $text -}}
  {{- $scope := contains ":" . | ternary (splitList ":" . | first) "default" | trim -}}
  {{- $level := splitList ":" . | last | trim -}}
  {{- if has $level (list "none" "fatal") }}{{ $level = "error" }}{{ end -}}
  {{- if not (has $level (list "error" "warn" "info" "debug" "trace")) -}}
    {{- fail (printf "logging.level: %q is no level; error, warn, info, debug and trace are" $level) -}}
  {{- end -}}
  {{- if has $scope (list "default" "all" "cni" "cni-agent") }}{{ $_ := set $levels "agent" $level }}{{ end -}}
  {{- if has $scope (list "default" "all" "cni" "cni-plugin") -}}
    {{- $_ := set $levels "plugin" (eq $level "trace" | ternary "debug" $level) -}}
  {{- end -}}
{{- end -}}
{{- $levels | toJson -}}
{{- end -}}

{{/*
agent.yaml: what the other values say, and config over it.
*/}}
{{- define "sluice.config" -}}
{{- $s := include "sluice.settings" . | fromJson -}}
{{- $v := $s.values -}}
{{- $config := dict
    "source" "kubernetes"
    "hostProc" "/host/proc"
    "excludeNamespaces" (append $v.excludeNamespaces .Release.Namespace | uniq)
    "metricsAddress" ($v.podMonitor.enabled | ternary "0.0.0.0:15014" "127.0.0.1:15014")
    "logFormat" (dig "logAsJson" true ($v.global | default dict) | ternary "json" "text")
-}}
{{- if ne $s.log.agent "info" }}{{ $_ := set $config "logLevel" $s.log.agent }}{{ end -}}
{{- if not $v.ambient.dnsCapture }}{{ $_ := set $config "dnsCapture" false }}{{ end -}}
{{- if not $v.ambient.ipv6 }}{{ $_ := set $config "ipv6" false }}{{ end -}}
{{- with $v.ambient.enablementSelectors }}{{ $_ := set $config "enablementSelectors" . }}{{ end -}}
{{- if $v.ambient.enableAmbientDetectionRetry }}{{ $_ := set $config "whenAgentUnavailable" "fail-closed" }}{{ end -}}
{{- with $v.env.HOST_PROBE_SNAT_IP }}{{ $_ := set $config "probeSourceV4" . }}{{ end -}}
{{- with $v.env.HOST_PROBE_SNAT_IPV6 }}{{ $_ := set $config "probeSourceV6" . }}{{ end -}}
{{- with $v.taint.keys }}{{ $_ := set $config "nodeTaints" . }}{{ end -}}
{{- if ne (join "," $s.netnsDirs) "/run/netns" }}{{ $_ := set $config "netnsDirs" $s.netnsDirs }}{{ end -}}
{{- if not $s.runtimeDir }}{{ $_ := set $config "criSocket" "" }}{{ end -}}
{{- mergeOverwrite $config $v.config | toYaml -}}
{{- end -}}

{{- define "sluice.labels" -}}
app.kubernetes.io/name: sluice-agent
app.kubernetes.io/part-of: sluice
{{- end -}}
