#!/usr/bin/env bash
# Makes what the nodes of a cluster show each other: a CA of that cluster alone, and a certificate
# for each node. For development and for trying things out; see --help.
set -euo pipefail

usage() {
    cat <<'HELP'
usage: certs.sh [--out DIR] [--days N] [--key-mode MODE] NAME[,HOST...] ...

Makes a CA (ca.pem, ca.key) and for each NAME a certificate and its key (NAME.pem, NAME.key) in DIR.
The certificate is valid for NAME and for each further HOST, a DNS name or an IP address: one of
them must be the host in peer.advertised, by which the other nodes call this one. It is for both
sides of a connection, as Piton wants it.

  --out DIR         where they are put [default: certs]
  --days N          how long a node's certificate is valid [default: 365]; the CA's is for ten years
  --key-mode MODE   of the nodes' keys [default: 0600]; 0644 where a container's user has to read them
  --help            this text

What is there and good is kept: the CA always, a node's certificate if it is of this CA, for the same
hosts, has its key, and is valid for 30 more days. So the command may be repeated, and names may be
added. Certificates are read when a node starts: restart it to use a new one.

Whoever holds a certificate of the CA may speak as any node. Keep ca.key away from the nodes, and use
the CA for nothing else.

Examples:
  certs.sh node1 node2 node3
  certs.sh --out deploy/certs --key-mode 0644 node1 node2 node3
  certs.sh node1,node1.example.org,10.0.0.1
HELP
}

refuse() {
    echo "certs.sh: $1" >&2
    echo "Try certs.sh --help." >&2
    exit 2
}

out=certs
days=365
key_mode=0600
nodes=()
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) usage; exit 0 ;;
        --out | --days | --key-mode)
            [ $# -ge 2 ] || refuse "$1 needs a value"
            case $1 in
                --out) out=$2 ;;
                --days) days=$2 ;;
                --key-mode) key_mode=$2 ;;
            esac
            shift
            ;;
        -*) refuse "unknown option $1" ;;
        *) nodes+=("$1") ;;
    esac
    shift
done
[ ${#nodes[@]} -gt 0 ] || refuse "name at least one node"
[[ $days =~ ^[1-9][0-9]*$ ]] || refuse "--days takes a number, not $days"
[[ $key_mode =~ ^0?[0-7]{3}$ ]] || refuse "--key-mode takes a mode such as 0600, not $key_mode"
command -v openssl >/dev/null || refuse "openssl is not installed"

RENEW_SECONDS=$((30 * 24 * 3600))
umask 077
mkdir -p "$out"
work=$(mktemp -d "$out/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT

new_key() {
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null \
        || openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"
}

make_ca() {
    new_key "$work/ca.key"
    openssl req -x509 -new -key "$work/ca.key" -sha256 -days 3650 \
        -subj "/CN=Piton cluster CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -out "$work/ca.pem"
    chmod 0644 "$work/ca.pem"
    # The key first: a certificate without its key would be taken for a whole CA.
    mv "$work/ca.key" "$out/ca.key"
    mv "$work/ca.pem" "$out/ca.pem"
    echo "made $out/ca.pem"
}

# NAME,HOST... as subjectAltName wants it.
alternative_names() {
    local hosts host names=()
    IFS=, read -ra hosts <<<"$1"
    for host in "${hosts[@]}"; do
        if [[ $host =~ ^[0-9]+(\.[0-9]+){3}$ || $host == *:* ]]; then
            names+=("IP:$host")
        else
            names+=("DNS:$host")
        fi
    done
    local IFS=,
    echo "${names[*]}"
}

is_good() {
    local name=$1 wanted=$2
    [ -s "$out/$name.pem" ] && [ -s "$out/$name.key" ] && [ -s "$out/$name.hosts" ] || return 1
    [ "$(cat "$out/$name.hosts")" = "$wanted" ] || return 1
    openssl x509 -in "$out/$name.pem" -noout -checkend $RENEW_SECONDS >/dev/null || return 1
    openssl verify -CAfile "$out/ca.pem" "$out/$name.pem" >/dev/null 2>&1 || return 1
    [ "$(openssl x509 -in "$out/$name.pem" -noout -pubkey)" = \
        "$(openssl pkey -in "$out/$name.key" -pubout)" ]
}

make_node() {
    local name=$1 hosts=$2
    new_key "$work/$name.key"
    openssl req -new -key "$work/$name.key" -subj "/CN=$name" -out "$work/$name.csr"
    cat >"$work/$name.ext" <<EXT
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=$hosts
subjectKeyIdentifier=hash
authorityKeyIdentifier=keyid
EXT
    openssl x509 -req -in "$work/$name.csr" -CA "$out/ca.pem" -CAkey "$out/ca.key" \
        -set_serial "0x$(openssl rand -hex 16)" -sha256 -days "$days" \
        -extfile "$work/$name.ext" -out "$work/$name.pem" 2>"$work/said" \
        || { cat "$work/said" >&2; return 1; }
    chmod 0644 "$work/$name.pem"
    echo "$hosts" >"$work/$name.hosts"
    mv "$work/$name.key" "$out/$name.key"
    mv "$work/$name.pem" "$out/$name.pem"
    mv "$work/$name.hosts" "$out/$name.hosts"
    echo "made $out/$name.pem for $hosts"
}

if [ -s "$out/ca.pem" ] && [ -s "$out/ca.key" ]; then
    echo "kept $out/ca.pem"
elif [ -e "$out/ca.pem" ]; then
    refuse "$out/ca.pem is there and $out/ca.key is not: bring the key, or choose another --out"
else
    make_ca
fi
for node in "${nodes[@]}"; do
    name=${node%%,*}
    [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9.-]*$ && $name != ca ]] || refuse "$name cannot be a node's name"
    hosts=$(alternative_names "$node")
    if is_good "$name" "$hosts"; then
        echo "kept $out/$name.pem for $hosts"
    else
        make_node "$name" "$hosts"
    fi
    chmod "$key_mode" "$out/$name.key"
done
