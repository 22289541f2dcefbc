"""The parts of TensorBoard's, W&B's and SwanLab's protobuf messages that a log reader looks at; everything else is
passed over.

Text is declared as bytes, which lies in the same place: a damaged name then costs its letters, not its record.
Sources: tensorflow/core/util/event.proto, core/framework/{summary,histogram,tensor,types}.proto,
tensorboard/plugins/hparams/plugin_data.proto, wandb/proto/wandb_internal.proto,
swanlab/proto/swanlab/{record,run,metric/data}/v1.
"""

from functools import cache

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# message -> field -> (number, type); "*" in front: repeated, a capital letter: another message of this table
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "Event": {"wall_time": (1, "double"), "step": (2, "int64"), "summary": (5, "Summary")},
    "Summary": {"value": (1, "*Value")},
    "Value": {
        "tag": (1, "bytes"),
        "simple_value": (2, "float"),
        "histo": (5, "Histogram"),
        "tensor": (8, "Tensor"),
        "metadata": (9, "Metadata"),
    },
    "Histogram": {
        "min": (1, "double"),
        "max": (2, "double"),
        "num": (3, "double"),
        "sum": (4, "double"),
        "sum_squares": (5, "double"),
        "bucket_limit": (6, "*double"),
        "bucket": (7, "*double"),
    },
    "Tensor": {
        "dtype": (1, "int32"),
        "shape": (2, "Shape"),
        "content": (4, "bytes"),
        "float_val": (5, "*float"),
        "double_val": (6, "*double"),
        "int_val": (7, "*int32"),
        "string_val": (8, "*bytes"),
        "int64_val": (10, "*int64"),
    },
    "Shape": {"dim": (2, "*Dim")},
    "Dim": {"size": (1, "int64")},
    "Metadata": {"plugin": (1, "Plugin")},
    "Plugin": {"name": (1, "bytes"), "content": (2, "bytes")},
    "HparamsData": {"session_start": (3, "SessionStart")},
    "SessionStart": {"hparams": (1, "*Hparam")},
    "Hparam": {"key": (1, "bytes"), "value": (2, "Any")},
    "Any": {"number": (2, "double"), "text": (3, "bytes"), "boolean": (4, "bool")},
    "Record": {"history": (2, "History"), "config": (5, "Config"), "metric": (12, "Metric"), "run": (17, "RunRecord")},
    "History": {"item": (1, "*Item"), "step": (2, "HistoryStep")},
    "HistoryStep": {"num": (1, "int64")},
    "Config": {"update": (1, "*Item")},
    "Item": {
        "key": (1, "bytes"),
        "nested_key": (2, "*bytes"),
        "boolean": (4, "bool"),
        "integer": (5, "int64"),
        "number": (6, "double"),
        "text": (7, "bytes"),
        "json": (8, "bytes"),
        "value_json": (16, "bytes"),
    },
    "Metric": {"name": (1, "bytes"), "glob_name": (2, "bytes"), "step_metric": (4, "bytes")},
    "RunRecord": {"config": (4, "Config"), "display_name": (8, "bytes")},
    "SwanLabRecord": {"start": (10, "SwanLabStart"), "scalar": (13, "SwanLabScalar"), "media": (14, "SwanLabMedia")},
    "SwanLabStart": {"name": (4, "bytes")},
    "SwanLabScalar": {
        "key": (1, "bytes"),
        "step": (2, "int64"),
        "timestamp": (4, "Time"),
        "value": (5, "SwanLabValue"),
    },
    "SwanLabMedia": {"key": (1, "bytes")},
    "SwanLabValue": {"number": (1, "double")},
    "Time": {"seconds": (1, "int64"), "nanos": (2, "int32")},
}


@cache
def _classes() -> dict[str, type]:
    file = descriptor_pb2.FileDescriptorProto(name="wisca_logs.proto", package="wisca_logs", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            one = message.field.add(name=field, number=number)
            one.label = one.LABEL_REPEATED if kind.startswith("*") else one.LABEL_OPTIONAL
            kind = kind.removeprefix("*")
            if kind[0].isupper():
                one.type, one.type_name = one.TYPE_MESSAGE, f".wisca_logs.{kind}"
            else:
                one.type = getattr(one, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"wisca_logs.{name}")) for name in _MESSAGES
    }


def message(name: str) -> type:
    """The class of a message of the table above; its ``FromString`` raises DecodeError."""
    return _classes()[name]


__all__ = ["DecodeError", "message"]
