#!/usr/bin/env bash
# Stops, starts or restarts one program of the node, for scenarios: `service.sh stop|kill|start|restart NAME`, `service.sh signal NAME STOP|CONT`.
. "$(dirname "$0")/env.sh"; . "$here/services.sh"
init_pid > /dev/null || fail "the cluster is not up: run make up"
kubernetes=$(part kubernetes) runtime=$(part runtime) rpms=$(part rpms); exec {lock}> /dev/null
case ${1-} in
  start) start "${2:?service}" ;;
  stop) stop "${2:?service}" ;;
  kill) stop "${2:?service}" KILL ;;
  # a signal that doesn't end it: STOP, CONT
  signal) signal "${2:?service}" "${3:?signal}" ;;
  restart) stop "${2:?service}"; start "$2" ;;
  *) fail "usage: service.sh stop|kill|start|restart NAME, or signal NAME SIGNAL; there are ${services[*]}" ;;
esac
