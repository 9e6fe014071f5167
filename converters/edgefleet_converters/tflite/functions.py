"""Function bodies: the nodes that a function operator, or a function of the model's own, stands for.

Finds and specialises a body; `expansion` puts it into the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx

FunctionKey = tuple[str, str, str]
"""(domain, name, overload) of a function that the model brings along."""


def find_body(
    proto: onnx.NodeProto,
    opsets: Mapping[str, int],
    input_types: Sequence[onnx.TypeProto],
    local: Mapping[FunctionKey, onnx.FunctionProto],
) -> onnx.FunctionProto | None:
    """Body of a node with its attributes filled in, or None when it is not a function.

    `input_types` has an empty TypeProto where an optional input is absent.
    """
    body = local.get((proto.domain, proto.op_type, proto.overload))
    if body is not None:
        return _specialised(body, proto, {})
    try:
        schema = onnx.defs.get_schema(proto.op_type, opsets.get(proto.domain, 1), proto.domain)
    except onnx.defs.SchemaError:
        return None
    encoded = _standard_body(schema, proto, opsets.get(proto.domain, 1), input_types)
    if not encoded:
        return None
    defaults = {name: item.default_value for name, item in schema.attributes.items() if item.default_value.name}
    return _specialised(onnx.FunctionProto.FromString(encoded), proto, defaults)


def _standard_body(
    schema: onnx.defs.OpSchema, proto: onnx.NodeProto, version: int, input_types: Sequence[onnx.TypeProto]
) -> bytes:
    """Serialised body of an operator of the standard, or nothing: the newest that its opset may use."""
    if schema.has_function:
        for known in sorted(schema.function_opset_versions, reverse=True):
            if known <= version:
                return bytes(schema.get_function_with_opset_version(known))
    if schema.has_context_dependent_function:
        types = [described.SerializeToString() for described in input_types]
        for known in sorted(schema.context_dependent_function_opset_versions, reverse=True):
            if known <= version:
                node = proto.SerializeToString()
                return bytes(schema.get_context_dependent_function_with_opset_version(known, node, types))
    return b""


def _specialised(
    body: onnx.FunctionProto, caller: onnx.NodeProto, defaults: Mapping[str, onnx.AttributeProto]
) -> onnx.FunctionProto:
    """The body with references to the caller's attributes replaced by those attributes."""
    given = dict(defaults)
    given.update({attribute.name: attribute for attribute in body.attribute_proto})
    given.update({attribute.name: attribute for attribute in caller.attribute})
    special = onnx.FunctionProto()
    special.CopyFrom(body)
    _fill(special.node, given)
    return special


def _fill(nodes: Iterable[onnx.NodeProto], given: Mapping[str, onnx.AttributeProto]) -> None:
    """Replace attribute references in place, in subgraphs too; one that the caller does not give is dropped."""
    for node in nodes:
        filled = []
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                if attribute.HasField("g"):
                    _fill(attribute.g.node, given)
                filled.append(attribute)
            elif attribute.ref_attr_name in given:
                copied = onnx.AttributeProto()
                copied.CopyFrom(given[attribute.ref_attr_name])
                copied.name = attribute.name
                filled.append(copied)
        # The references are replaced as a whole: protobuf's repeated fields cannot be assigned to.
        kept = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in filled]
        del node.attribute[:]
        node.attribute.extend(kept)
