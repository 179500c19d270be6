{{- define "piton.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "piton.headless" -}}
{{ include "piton.fullname" . }}-headless
{{- end -}}

{{/* Under which the pods are found: <pod>.<this>. */}}
{{- define "piton.domain" -}}
{{ include "piton.headless" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{- define "piton.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "piton.labels" -}}
{{ include "piton.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "piton.tlsSecret" -}}
{{- $tls := .Values.tls -}}
{{- if and $tls.existingSecret $tls.certManager.enabled -}}
{{- fail "give one of tls.existingSecret and tls.certManager.enabled, not both" -}}
{{- else if $tls.existingSecret -}}
{{- $tls.existingSecret -}}
{{- else if $tls.certManager.enabled -}}
{{ include "piton.fullname" . }}-peer-tls
{{- else -}}
{{- fail "nodes speak with each other over mTLS: set tls.existingSecret, or tls.certManager.enabled=true" -}}
{{- end -}}
{{- end -}}

{{/* One pod where it founds the cluster. */}}
{{- define "piton.replicas" -}}
{{- if .Values.bootstrap -}}
{{- $found := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "piton.fullname" .) -}}
{{- if $found -}}
{{- if gt (int $found.spec.replicas) 1 -}}
{{- fail "bootstrap=true is for the first start of a cluster, and this one has more than one pod" -}}
{{- end -}}
{{- end -}}
1
{{- else -}}
{{ .Values.replicaCount }}
{{- end -}}
{{- end -}}

{{/* A table of TOML, and those below it. JSON's strings, numbers and lists are TOML's, too. */}}
{{- define "piton.table" -}}
[{{ .name }}]
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{ range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{ include "piton.table" (dict "name" (printf "%s.%s" $.name $key) "table" $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The others' addresses, and its own. */}}
{{- define "piton.addresses" -}}
{{- range $ordinal := until (int .Values.replicaCount) }}
- {{ include "piton.fullname" $ }}-{{ $ordinal }}.{{ include "piton.domain" $ }}:7234
{{- end }}
{{- end -}}

{{/* The configuration without [cluster]: what pods are restarted for when it changes. */}}
{{- define "piton.config" -}}
{{- $certs := "/etc/piton/certs" -}}
{{- $own := dict
    "listen" (dict "ip" .Values.listenIP "port" 7233 "http_port" 8233)
    "data" (dict "directory" "/var/lib/piton")
    "shards" (dict "count" .Values.shards)
    "peer" (dict
      "ip" .Values.listenIP
      "port" 7234
      "certificate" (printf "%s/tls.crt" $certs)
      "key" (printf "%s/tls.key" $certs)
      "ca" (printf "%s/ca.crt" $certs)) -}}
{{- $all := mustMergeOverwrite (dict "log" (dict "format" "json")) (deepCopy .Values.config) $own -}}
{{- range $name, $table := $all }}
{{ include "piton.table" (dict "name" $name "table" $table) | trim }}
{{ end }}
{{- end -}}
