# Sourced after env.sh: the programs of the node, each with its command line.
services=(etcd containerd registry registry-auth rpms dns apiserver controller-manager scheduler kubelet proxy)

# `command_line NAME` sets `command` to what the service runs.
command_line() {
  local pki=$state/pki conf=$state/conf etcd=http://127.0.0.1
  case $1 in
    etcd) command=(/usr/bin/etcd --data-dir "$state/node/etcd" --listen-client-urls $etcd:2379 --advertise-client-urls $etcd:2379
      --listen-peer-urls $etcd:2380 --initial-advertise-peer-urls $etcd:2380 --initial-cluster default=$etcd:2380 --unsafe-no-fsync) ;;
    containerd) command=(/usr/bin/env "PATH=$runtime/bin:$PATH" "$runtime/bin/containerd" --config "$conf/containerd.toml") ;;
    registry) command=(/usr/bin/docker-registry serve "$conf/registry.yml") ;;
    registry-auth) command=(/usr/bin/docker-registry serve "$conf/registry-auth.yml") ;;
    rpms) command=(/bin/busybox httpd -f -p $address:8081 -h "$rpms/repo") ;;
    dns) command=(/usr/sbin/dnsmasq --keep-in-foreground --conf-file=/dev/null --pid-file= --user=root --listen-address=$address --bind-interfaces
      --no-resolv --no-hosts --address=/#/ --host-record=kubernetes.default.svc.cluster.local,10.96.0.1 --hostsdir="$state/names") ;;
    apiserver) command=("$kubernetes/bin/kube-apiserver" --etcd-servers=$etcd:2379 --advertise-address=$address --secure-port=6443
      --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true
      --client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key"
      --kubelet-client-certificate="$pki/apiserver-kubelet-client.crt" --kubelet-client-key="$pki/apiserver-kubelet-client.key"
      --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP
      --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file="$pki/sa.pub"
      --service-account-signing-key-file="$pki/sa.key" --service-cluster-ip-range=10.96.0.0/16
      --audit-policy-file="$conf/audit.yaml" --audit-log-path="$state/logs/audit.log" ${STRATA_APISERVER_FLAGS-}) ;;
    controller-manager) command=("$kubernetes/bin/kube-controller-manager" --kubeconfig="$pki/controller-manager.kubeconfig" --leader-elect=false
      --use-service-account-credentials=true --service-account-private-key-file="$pki/sa.key" --root-ca-file="$pki/ca.crt" --bind-address=127.0.0.1) ;;
    scheduler) command=("$kubernetes/bin/kube-scheduler" --kubeconfig="$pki/scheduler.kubeconfig" --leader-elect=false --bind-address=127.0.0.1) ;;
    kubelet) command=("$kubernetes/bin/kubelet" --config="$conf/kubelet.yaml" --kubeconfig="$pki/kubelet.kubeconfig" --hostname-override=node1 --node-ip=$address) ;;
    proxy) command=("$kubernetes/bin/kube-proxy" --config="$conf/proxy.yaml") ;;
    *) fail "no such service: $1; there are ${services[*]}" ;;
  esac
}

# Whether the service's process lives; what is remembered is nsenter, which lives as long as what it entered for.
runs() { local pid; pid=$(cat "$state/run/$1.pid" 2> /dev/null) && grep -q "/$node" "/proc/$pid/cgroup" 2> /dev/null; }

start() {
  local command; ! runs "$1" || return 0
  command_line "$1"
  (join_cgroups; exec setsid nsenter -t "$(init_pid)" -m -n -p -u -i -C -- "${command[@]}") \
    >> "$state/logs/$1.log" 2>&1 < /dev/null {lock}>&- &
  echo $! > "$state/run/$1.pid"
}

signal() {
  local pid; pid=$(cat "$state/run/$1.pid")
  # none, if it ends by itself just now
  kill -s "$2" $(cat "/proc/$pid/task/$pid/children" 2> /dev/null) 2> /dev/null || true
  # nsenter stands still with what it has entered for
  [ "$2" != CONT ] || kill -s CONT "$pid"
}

# Ends the service with a signal and waits until it is gone.
stop() {
  runs "$1" || return 0
  signal "$1" "${2:-TERM}"
  for _ in $(seq 200); do runs "$1" || return 0; sleep 0.05; done
  fail "$1 doesn't end"
}
