{{- define "skywork.labels" -}}
app.kubernetes.io/name: skywork-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "skywork.selector" -}}
app.kubernetes.io/name: skywork-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "skywork.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "skywork.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end }}

{{- /* What the operator does in every namespace it watches; nothing here touches Secrets or other workloads. */ -}}
{{- define "skywork.rules" -}}
- apiGroups: [skywork.dev]
  resources: [skyworkruns]
  # Only for spec.ttlAfterFinished.
  verbs: [get, list, watch, delete]
- apiGroups: [skywork.dev]
  resources: [skyworkruns/status]
  verbs: [update]
- apiGroups: [skywork.dev]
  resources: [skyworkruns/finalizers]
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
- apiGroups: [scheduling.k8s.io, scheduling.volcano.sh, scheduling.x-k8s.io]
  # Only for spec.scheduling.gang.
  resources: [podgroups]
  verbs: [create, patch]
- apiGroups: [""]
  resources: [events]
  # A Job that cannot make pods says why in Events only.
  verbs: [create, list]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [list, watch, create, patch]
{{- end }}

{{- define "skywork.elects" -}}
{{- if or .Values.leaderElection (gt (int .Values.replicas) 1) }}true{{ end }}
{{- end }}

{{- /* Labels of an object that something in the cluster looks for: the chart's, and those it looks for. */ -}}
{{- define "skywork.monitorLabels" -}}
{{- toYaml (merge (dict) .more (include "skywork.labels" .root | fromYaml)) }}
{{- end }}

{{- /* Whether a kind of the prometheus-operator is wanted and known to the cluster; NOTES.txt tells of one that is not. */ -}}
{{- define "skywork.has" -}}
{{- if and .wanted.enabled (.root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" .kind)) }}true{{ end }}
{{- end }}
