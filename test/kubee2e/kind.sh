#!/bin/sh
# Runs the tests of a whole cluster on one that kind makes; needs kind and Docker.
set -eu
cd "$(dirname "$0")"
name=ovl-$$
dir=$(mktemp -d)
trap 'kind delete cluster --name "$name"; rm -rf "$dir"' EXIT
export KUBECONFIG="$dir/kubeconfig" E2E=cluster
# The images of the tests' pods, as archives.
E2E_ARCHIVES=$dir go test -count=1 -run '^$' .
kind create cluster --name "$name" --config kind.yaml
for image in "$dir"/*.tar ../../bin/image/vxlan-cni.tar; do
  kind load image-archive --name "$name" "$image"
done
cd .. && go test -count=1 -parallel 8 -v -timeout 45m ./kubee2e
