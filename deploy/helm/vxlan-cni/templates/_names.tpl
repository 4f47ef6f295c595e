{{- define "vxlan-cni.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{- define "vxlan-cni.labels" -}}
app.kubernetes.io/name: vxlan-cni
{{- end }}
