{{/* Labels by which objects find their pods; they can never change.
     Takes a list: root, component, and for clients the service. */}}
{{- define "job-orchestrator.selector" -}}
app.kubernetes.io/name: job-orchestrator
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
job-orchestrator/service: {{ index . 2 }}
{{- end }}
{{- end }}

{{/* The labels of an object. */}}
{{- define "job-orchestrator.labels" -}}
{{ include "job-orchestrator.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version }}
{{- end }}

{{- define "job-orchestrator.secret" -}}
{{ .Values.clientToken.existingSecret | default (printf "%s-client-token" .Release.Name) }}
{{- end }}

{{/* All services with what they have from `clients`, as YAML. One that is null is no service: so a
     later file of values takes one away. */}}
{{- define "job-orchestrator.services" -}}
{{- range $name, $own := .Values.services }}
{{- if not (kindIs "invalid" $own) }}
{{- $service := mustMergeOverwrite (deepCopy $.Values.clients) (deepCopy $own) }}
{{- if gt (len (printf "%s-%s" $.Release.Name $name)) 52 }}
{{- fail (printf "services.%s: this name and the release's have over 51 letters" $name) }}
{{- end }}
{{- if not $service.image.repository }}
{{- fail (printf "services.%s.image.repository: the service needs an image" $name) }}
{{- end }}
{{ $name }}:
  {{- toYaml $service | nindent 2 }}
{{- end }}
{{- end }}
{{- end }}

{{/* A map of settings as environment variables of a container. Takes a dict: prefix, settings. */}}
{{- define "job-orchestrator.settings" -}}
{{- $prefix := .prefix }}
{{- range $name, $value := .settings }}
{{- if kindIs "slice" $value }}
{{- $value = join "," $value }}
{{- else if kindIs "float64" $value }}
{{- $value = int64 $value }}
{{- end }}
            - name: {{ $prefix }}{{ snakecase $name | upper }}
              value: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* What both programs' pods have in common, as Pod Security "restricted" wants it.
     Takes a list: root, the values of the program. */}}
{{- define "job-orchestrator.pod" -}}
{{- $root := index . 0 }}
{{- $own := index . 1 -}}
automountServiceAccountToken: false
# Kubernetes would add variables for each Service of the namespace, and one that is named
# service-… gives some that begin with SERVICE_, as the server's settings do.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* What both programs' containers have in common. Takes the same. */}}
{{- define "job-orchestrator.container" -}}
{{- $root := index . 0 }}
{{- $own := index . 1 -}}
image: {{ $own.image.repository }}:{{ $own.image.tag | default $root.Chart.AppVersion }}
imagePullPolicy: {{ $own.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
# A setting that cannot be used ends the start with one line: `kubectl describe pod` shows it.
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{/* The volume with the token. Below /run/secrets is the place where the images look for it. */}}
{{- define "job-orchestrator.token-volume" -}}
- name: client-token
  secret:
    secretName: {{ include "job-orchestrator.secret" . }}
    defaultMode: 0440
    items:
      - key: token
        path: client-token
{{- end }}

{{/* The claim for a volume. Takes a list: the selector labels, the values of its storage. It has no
     label that changes with the version: claims of a StatefulSet can never change. */}}
{{- define "job-orchestrator.claim" -}}
{{- $storage := index . 1 -}}
- metadata:
    name: data
    labels:
      {{- index . 0 | nindent 6 }}
  spec:
    accessModes: [{{ $storage.accessMode }}]
    {{- with $storage.storageClassName }}
    storageClassName: {{ . }}
    {{- end }}
    resources:
      requests:
        storage: {{ $storage.size }}
{{- end }}
