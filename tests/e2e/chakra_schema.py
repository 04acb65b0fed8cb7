"""Chakra's messages as protobuf classes: the fields of MLCommons Chakra's schema/protobuf/et_def.proto that a trace of ours has,
by name, number and type. No package of the registry holds that file, so the table is written by hand; an unknown field is an error
here. differences() compares the table with the file, where there is one.
"""
import re

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {"string": 9, "uint64": 4, "int64": 3, "bool": 8}
ENUMS = {
    "NodeType": {"INVALID_NODE": 0, "METADATA_NODE": 1, "COMP_NODE": 4, "COMM_SEND_NODE": 5, "COMM_RECV_NODE": 6,
                 "COMM_COLL_NODE": 7},
    "CollectiveCommType": {"ALL_REDUCE": 0, "REDUCE": 1, "ALL_GATHER": 2, "GATHER": 3, "SCATTER": 4, "BROADCAST": 5,
                           "ALL_TO_ALL": 6, "REDUCE_SCATTER": 7, "BARRIER": 9},
}
NODE_TYPES = ENUMS["NodeType"]
COLLECTIVES = ENUMS["CollectiveCommType"]

# (name, number, type): "*" before the type is a repeated field, "|" one of the oneof `value`.
MESSAGES = {
    "AttributeProto": [("name", 1, "string"), ("int64_val", 9, "|int64"), ("uint64_val", 13, "|uint64"),
                       ("bool_val", 27, "|bool"), ("string_val", 29, "|string")],
    "GlobalMetadata": [("version", 1, "string"), ("attr", 2, "*AttributeProto")],
    "IOInfo": [("values", 1, "string"), ("shapes", 2, "string"), ("types", 3, "string")],
    "Node": [("id", 1, "uint64"), ("name", 2, "string"), ("type", 3, "NodeType"), ("ctrl_deps", 4, "*uint64"),
             ("data_deps", 5, "*uint64"), ("start_time_micros", 6, "uint64"), ("duration_micros", 7, "uint64"),
             ("inputs", 8, "IOInfo"), ("outputs", 9, "IOInfo"), ("attr", 10, "*AttributeProto")],
}


def _add_field(message, field, number, kind):
    added = message.field.add(name=field, number=number, label=3 if kind[0] == "*" else 1)
    if kind[0] == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name="value")
        added.oneof_index = 0
    kind = kind.lstrip("*|")
    if kind in _TYPES:
        added.type = _TYPES[kind]
    else:
        added.type, added.type_name = 14 if kind in ENUMS else 11, ".Chakra." + kind


def _classes():
    file = descriptor_pb2.FileDescriptorProto(name="et.proto", package="Chakra", syntax="proto3")
    for name, values in ENUMS.items():
        added = file.enum_type.add(name=name)
        for value, number in values.items():
            added.value.add(name=value, number=number)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields:
            _add_field(message, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName("Chakra." + name)) for name in MESSAGES}


CLASSES = _classes()


def _fields(body, mark=""):
    """Fields of a message's body by name: (number, type), the type marked as in MESSAGES. What is not understood is an error."""
    fields, at = {}, 0
    field = re.compile(r"\s*(repeated\s+)?(\w+)\s+(\w+)\s*=\s*(\d+)\s*(?:\[[^\]]*\])?\s*;")
    oneof = re.compile(r"\s*oneof\s+(\w+)\s*\{([^{}]*)\}")
    other = re.compile(r"\s*(?:(?:reserved|option)\b[^;]*)?;")
    while body[at:].strip():
        found = oneof.match(body, at)
        if found:
            fields.update(_fields(found[2], "|" if found[1] == "value" else f"|{found[1]} "))
        elif (found := field.match(body, at)) and found[2] not in ("reserved", "option"):
            fields[found[3]] = int(found[4]), ("*" if found[1] else mark) + found[2]
        else:
            found = other.match(body, at)
            assert found, f"not understood: {body[at:at + 60].strip()!r}"
        at = found.end()
    return fields


def parse(text):
    """(messages, enums) of a proto3 file without nested definitions: of a message fields, of an enum values, by name."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    messages, enums = {}, {}
    block = re.compile(r"\b(message|enum)\s+(\w+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
    for kind, name, body in block.findall(text):
        if kind == "message":
            messages[name] = _fields(body)
        else:
            enums[name] = {value: int(number) for value, number in re.findall(r"(\w+)\s*=\s*(-?\d+)", body)}
    left = block.sub(" ", text)
    assert re.fullmatch(r"(\s|(?:syntax|package|option|import)\b[^;{}]*;)*", left), f"not understood: {left.split()!r}"
    return messages, enums


def differences(text):
    """What the table has otherwise than the text of an et_def.proto, a line each. The package does not matter."""
    messages, enums = parse(text)
    found = []
    for name, fields in MESSAGES.items():
        for field, number, kind in fields:
            theirs = messages.get(name, {}).get(field)
            if theirs != (number, kind):
                found.append(f"{name}.{field}: {kind} = {number} here, there {theirs}")
    for name, values in ENUMS.items():
        for value, number in values.items():
            theirs = enums.get(name, {}).get(value)
            if theirs != number:
                found.append(f"{name}.{value}: {number} here, there {theirs}")
    return found


def attributes(message):
    """Its attributes by name; each has one value."""
    result = {}
    for attr in message.attr:
        value = attr.WhichOneof("value")
        assert value and attr.name not in result, attr
        result[attr.name] = getattr(attr, value)
    return result


def read(data):
    """(metadata, nodes) of a stream of messages, each with its length before it."""
    messages, at = [], 0
    while at < len(data):
        length, shift = 0, 0
        while True:
            byte = data[at]
            at += 1
            length |= (byte & 0x7f) << shift
            shift += 7
            if byte < 0x80:
                break
        assert at + length <= len(data), "a message is cut"
        kind = CLASSES["Node" if messages else "GlobalMetadata"]
        messages.append(kind.FromString(data[at:at + length]))
        # what the schema does not know would be kept, and come back when the message is written
        assert messages[-1].ByteSize() == sum_known(messages[-1]), f"unknown fields: {messages[-1]}"
        at += length
    assert all(node.type in NODE_TYPES.values() for node in messages[1:]), "an unknown type of node"
    return messages[0], messages[1:]


def sum_known(message):
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return copy.ByteSize()
