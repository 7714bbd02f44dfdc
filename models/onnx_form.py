"""A calibrated model of boosted trees in ONNX, for whoever scores elsewhere, and whether it says the same.

The form needs the package `onnx`, the comparison `onnxruntime`; neither is needed to score here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from models.boosted import STEPS, UNIT, BoostedTrees, Calibration
from models.trees import Floats, Ints

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8
"""Old enough for every runtime of the last years."""
ROWS, CHANCE = "rows", "chance"
PARITY = 0.5 / STEPS / 4 + 1e-5
"""How far chances may lie apart: ours go by steps of log-odds, of which a half is at most this."""


class ParityError(ValueError):
    """The ONNX form scores otherwise than the model it was made from."""


def onnx_form(trees: BoostedTrees, calibration: Calibration, names: Sequence[str]) -> bytes:
    """The model as an ONNX file: float32 `rows` (any, features) in, float32 `chance` (any, 1) out.

    The names of the features stand in its metadata, in order, joined by commas.
    """
    from onnx import TensorProto, checker, helper

    tree_ids, node_ids, is_leaf = _numbered(trees)
    left, right = trees.child.reshape(-1, 2).T
    branches = {
        "nodes_treeids": tree_ids.tolist(),
        "nodes_nodeids": node_ids.tolist(),
        "nodes_featureids": np.where(is_leaf, 0, trees.feature).tolist(),
        "nodes_modes": np.where(is_leaf, "LEAF", "BRANCH_LEQ").tolist(),
        "nodes_values": np.where(is_leaf, 0, trees.threshold).astype(np.float32).tolist(),
        "nodes_truenodeids": np.where(is_leaf, 0, node_ids[left]).tolist(),
        "nodes_falsenodeids": np.where(is_leaf, 0, node_ids[right]).tolist(),
        "target_treeids": tree_ids[is_leaf].tolist(),
        "target_nodeids": node_ids[is_leaf].tolist(),
        "target_ids": [0] * int(is_leaf.sum()),
        "target_weights": (trees.margin[is_leaf] / UNIT).astype(np.float32).tolist(),
    }
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            [ROWS],
            ["trees"],
            domain="ai.onnx.ml",
            n_targets=1,
            aggregate_function="SUM",
            base_values=[trees.start / UNIT],
            **branches,
        ),
        helper.make_node("Mul", ["trees", "slope"], ["sloped"]),
        helper.make_node("Add", ["sloped", "offset"], ["log_odds"]),
        helper.make_node("Sigmoid", ["log_odds"], [CHANCE]),
    ]
    numbers = [
        helper.make_tensor(name, TensorProto.FLOAT, [1], [value])
        for name, value in (("slope", calibration.slope), ("offset", calibration.offset))
    ]
    graph = helper.make_graph(
        nodes,
        "fraud",
        [helper.make_tensor_value_info(ROWS, TensorProto.FLOAT, [None, len(names)])],
        [helper.make_tensor_value_info(CHANCE, TensorProto.FLOAT, [None, 1])],
        numbers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        ir_version=IR_VERSION,
        producer_name="millrace",
    )
    helper.set_model_props(model, {"features": ",".join(names)})
    checker.check_model(model)
    body: bytes = model.SerializeToString()
    return body


def check_parity(body: bytes, trees: BoostedTrees, calibration: Calibration, rows: Floats) -> float:
    """The largest distance of the form's chances from the model's own on these rows.

    Raises `ParityError` where it is above `PARITY`: such a form is not to be used.
    """
    ours = calibration.of_margins(trees.margins(rows))
    distance = float(np.abs(chances(body, rows) - ours).max())
    if distance > PARITY:
        raise ParityError(
            f"the ONNX form's chances lie up to {distance:.2g} from the model's; do not use it, and report it"
        )
    return distance


def chances(body: bytes, rows: Floats) -> Any:
    """What an ONNX runtime says of the rows, float32 (rows,), on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(body, options, providers=["CPUExecutionProvider"])
    return session.run([CHANCE], {ROWS: rows})[0][:, 0]


def _numbered(trees: BoostedTrees) -> tuple[Ints, Ints, Any]:
    """Of each node its tree, its number within the tree, and whether it is a leaf."""
    total = len(trees.feature)
    tree_ids = np.searchsorted(trees.roots, np.arange(total), side="right") - 1
    node_ids = np.arange(total) - trees.roots[tree_ids]
    return tree_ids, node_ids, trees.child[::2] == np.arange(total)
