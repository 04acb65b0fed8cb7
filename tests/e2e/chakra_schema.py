"""Chakra's messages as protobuf classes: the fields of MLCommons Chakra's schema/protobuf/et_def.proto that a trace of ours has,
by name, number and type. No package of the registry holds that file, and an unknown field is an error here.
"""
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_TYPES = {"string": 9, "uint64": 4, "int64": 3, "bool": 8}
NODE_TYPES = {"METADATA_NODE": 1, "COMP_NODE": 4, "COMM_SEND_NODE": 5, "COMM_RECV_NODE": 6, "COMM_COLL_NODE": 7}

_MESSAGES = {
    "AttributeProto": [("name", 1, "string"), ("int64_val", 9, "int64"), ("uint64_val", 13, "uint64"), ("bool_val", 27, "bool"),
                       ("string_val", 29, "string")],
    "GlobalMetadata": [("version", 1, "string"), ("attr", 2, "*AttributeProto")],
    "IOInfo": [("values", 1, "string"), ("shapes", 2, "string"), ("types", 3, "string")],
    "Node": [("id", 1, "uint64"), ("name", 2, "string"), ("type", 3, "uint64"), ("ctrl_deps", 4, "*uint64"),
             ("data_deps", 5, "*uint64"), ("start_time_micros", 6, "uint64"), ("duration_micros", 7, "uint64"),
             ("inputs", 8, "IOInfo"), ("outputs", 9, "IOInfo"), ("attr", 10, "*AttributeProto")],
}


def _classes():
    file = descriptor_pb2.FileDescriptorProto(name="et.proto", package="Chakra", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=3 if kind[0] == "*" else 1)
            kind = kind.lstrip("*")
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = 11, ".Chakra." + kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName("Chakra." + name)) for name in _MESSAGES}


CLASSES = _classes()


def attributes(message):
    """Its attributes by name; each has one value."""
    result = {}
    for attr in message.attr:
        values = [value for field, value in attr.ListFields() if field.name != "name"]
        defaults = [""] if not values else values  # proto3 leaves out what is zero or empty
        assert len(defaults) == 1 and attr.name not in result, attr
        result[attr.name] = defaults[0]
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
    return messages[0], messages[1:]


def sum_known(message):
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return copy.ByteSize()
