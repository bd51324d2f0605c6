-- Generic UDP Encapsulation (draft-ietf-intarea-gue-09), data messages of variant 0, for Wireshark
-- and tshark: shows the packets in holdfast's tunnel.
--
--   tshark -X lua_script:gue.lua -r FILE.pcapng
--   tshark -X lua_script:gue.lua -X lua_script1:6080 -r FILE.pcapng    with another tunnel.port

local gue = Proto("gue", "Generic UDP Encapsulation")

local field = {
    variant = ProtoField.uint8("gue.variant", "Variant", base.DEC, nil, 0xc0),
    control = ProtoField.bool("gue.control", "Control message", 8, nil, 0x20),
    hlen = ProtoField.uint8("gue.hlen", "Words of extensions", base.DEC, nil, 0x1f),
    protocol = ProtoField.uint8("gue.protocol", "Protocol of the payload"),
    flags = ProtoField.uint16("gue.flags", "Flags", base.HEX),
}
gue.fields = { field.variant, field.control, field.hlen, field.protocol, field.flags }

local PAYLOADS = { [4] = Dissector.get("ip"), [41] = Dissector.get("ipv6") }

function gue.dissector(buffer, packet, tree)
    if buffer:len() < 4 then return 0 end
    local first = buffer(0, 1):uint()
    local length = 4 + 4 * bit.band(first, 0x1f)
    -- Another variant, a control message, or cut off.
    if bit.band(first, 0xe0) ~= 0 or buffer:len() <= length then return 0 end
    local header = tree:add(gue, buffer(0, length))
    for _, name in ipairs({ "variant", "control", "hlen" }) do header:add(field[name], buffer(0, 1)) end
    header:add(field.protocol, buffer(1, 1))
    header:add(field.flags, buffer(2, 2))
    local payload = PAYLOADS[buffer(1, 1):uint()]
    if not payload then return length end
    return length + payload:call(buffer(length):tvb(), packet, tree)
end

DissectorTable.get("udp.port"):add(tonumber((...)) or 6080, gue)
