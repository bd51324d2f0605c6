# shellcheck shell=bash
# Servers whose uplink is a device of this machine, by its PCI address, in place of a veth. The other
# end of its cable becomes the leaf's interface, and what the machine had before when the lab ends.

# uplink_of SERVER: its PCI address; nothing when it is a veth.
uplink_of() {
    local word
    for word in $UPLINKS; do
        [[ ${word%%=*} != "$1" ]] || { word=${word#*=}; echo "${word%,*}"; }
    done
}

other_end_of() { # SERVER
    local word
    for word in $UPLINKS; do [[ ${word%%=*} != "$1" ]] || echo "${word##*,}"; done
}

check_uplinks() {
    local word server pci interface
    [[ -z $UPLINKS || $MODE == holdfast ]] || die "--uplink is for --mode holdfast"
    for word in $UPLINKS; do
        [[ $word =~ ^(server[0-9]+)=([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]),([^,/]+)$ ]] ||
            die "--uplink is SERVER=PCI,INTERFACE, as server1=0000:3b:02.0,eth1, not '$word'"
        server=${BASH_REMATCH[1]} pci=${BASH_REMATCH[2]} interface=${BASH_REMATCH[3]}
        (($(grep -c "^$server=" <<<"${UPLINKS// /$'\n'}") == 1)) || die "--uplink: $server has one uplink"
        (($(node_number "$server") <= SERVERS)) || die "--uplink: there is no $server (--servers $SERVERS)"
        [[ $(driver_of "$pci") == vfio-pci ]] ||
            die "--uplink: $pci is not bound to vfio-pci: scripts/sriov bind does that"
        [[ -e /sys/class/net/$interface ]] || die "--uplink: there is no interface $interface"
        [[ -z $(ip -json address show dev "$interface" scope global | jq -r '.[].addr_info[]?.local') ]] ||
            die "--uplink: $interface has an address: it is in use"
        ! compgen -G "/sys/class/net/$interface/upper_*" >/dev/null ||
            die "--uplink: $interface is in use: a bridge, a bond or a VLAN is above it"
    done
}

driver_of() { basename "$(readlink "/sys/bus/pci/devices/$1/driver")" 2>/dev/null; } # PCI

# take_interface LEAF SERVER: with its own offloads, unlike a veth.
take_interface() {
    local interface
    interface=$(other_end_of "$2")
    printf '%s %s %s\n' "$1" "$interface" "$(cat "/sys/class/net/$interface/mtu")" >"$(node_dir "$2")/uplink"
    ip link set "$interface" down
    ip link set "$interface" name "$2" netns "$(ns "$1")"
    ip -n "$(ns "$1")" link set "$2" mtu "$(interface_mtu "$1" "$2")" up
}

# Also after a lab that did not come up. A namespace that goes would give them back with the leaf's name
# for them.
give_interfaces_back() {
    local file server leaf interface mtu
    for file in "$LAB_DIR"/server*/uplink; do
        [[ -r $file ]] || continue
        server=$(basename "$(dirname "$file")")
        read -r leaf interface mtu <"$file"
        node_exists "$leaf" || continue
        if ! ip -n "$(ns "$leaf")" link set "$server" down ||
            ! ip -n "$(ns "$leaf")" link set "$server" mtu "$mtu" name "$interface" netns "$$"; then
            warn "$interface is not given back under its name: look for $server (ip link)"
        fi
    done
}

uplink_keys() { # SERVER
    local pci
    pci=$(uplink_of "$1")
    printf 'device = "%s"\n' "${pci:-$(leaf_of "$1")}"
    [[ -n $pci ]] || return 0
    printf 'mtu = %d\n' "$FABRIC_MTU"
    [[ -z $(function_setting "$pci" .address) ]] || printf 'promiscuous = false\nport_vlan = %d\n' \
        "$(function_setting "$pci" '.vlan_list[0].vlan // 0')"
}

# The NIC's switch gives a virtual function what is for its address, and nothing else: that is the host
# port's, then.
host_mac_key() { # SERVER
    local mac
    mac=$(function_setting "$(uplink_of "$1")" .address)
    [[ -z $mac ]] || printf 'mac = "%s"\n' "$mac"
}

# function_setting PCI JQ_EXPRESSION: of a virtual function, as its physical one has it; nothing of what
# is none.
function_setting() {
    local pf=/sys/bus/pci/devices/${1:-none}/physfn link
    [[ -d $pf/net ]] || return 0
    for link in "$pf"/virtfn*; do
        [[ $(basename "$(readlink "$link")") == "$1" ]] || continue
        ip -json link show dev "$(basename "$pf"/net/*)" |
            jq -r --argjson vf "${link##*virtfn}" ".[0].vfinfo_list[]? | select(.vf == \$vf) | $2"
    done
}
