#!/usr/bin/env bash
# Makes the cluster's keys, certificates and kubeconfigs in the folder given: `pki.sh FOLDER`.
set -euo pipefail
mkdir -p "${1:?folder}"; cd "$1"; exec 2> pki.log
trap '[ $? = 0 ] || cat pki.log' EXIT
openssl ecparam -name prime256v1 -genkey -noout -out ca.key
openssl req -x509 -new -key ca.key -subj /CN=kubernetes-ca -days 3650 -out ca.crt -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
openssl genrsa -out sa.key 2048; openssl rsa -in sa.key -pubout -out sa.pub

certificate() { # name, subject, extended key usage, alternative names
  openssl ecparam -name prime256v1 -genkey -noout -out "$1.key"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=%s\n%s\n' "$3" "${4:+subjectAltName=$4}" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -extfile "$1.ext" -out "$1.crt"
  rm "$1.csr" "$1.ext"
}
certificate apiserver /CN=kube-apiserver serverAuth \
  DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,IP:127.0.0.1,IP:10.250.0.1,IP:10.96.0.1
certificate apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
certificate admin /O=system:masters/CN=admin clientAuth
certificate controller-manager /CN=system:kube-controller-manager clientAuth
certificate scheduler /CN=system:kube-scheduler clientAuth
certificate proxy /CN=system:kube-proxy clientAuth
certificate kubelet /O=system:nodes/CN=system:node:node1 clientAuth,serverAuth DNS:node1,IP:10.250.0.1,IP:127.0.0.1

for user in admin controller-manager scheduler proxy kubelet; do cat > "$user.kubeconfig" <<K; done
apiVersion: v1
kind: Config
clusters:
- name: strata
  cluster: {server: "https://10.250.0.1:6443", certificate-authority-data: $(base64 -w0 < ca.crt)}
users:
- name: $user
  user: {client-certificate-data: $(base64 -w0 < "$user.crt"), client-key-data: $(base64 -w0 < "$user.key")}
contexts:
- name: strata
  context: {cluster: strata, user: $user}
current-context: strata
K
