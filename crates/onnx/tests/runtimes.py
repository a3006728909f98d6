"""Runs network.onnx of a folder on its `image` and compares with its `logits`.

runtimes.py RUNTIME FOLDER BATCH CHANNELS HEIGHT WIDTH
"""
import sys

import numpy as np

runtime, folder = sys.argv[1:3]
shape = [int(side) for side in sys.argv[3:]]
image = np.fromfile(f"{folder}/image", "<f4").reshape(shape)
file = f"{folder}/network.onnx"
if runtime == "onnxruntime":
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"input": image})
else:
    import openvino

    core = openvino.Core()
    # Its CPU plugin computes in bf16 by default where the processor has it.
    network = core.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = network({"input": image})["logits"]
expected = np.fromfile(f"{folder}/logits", "<f4").reshape(found.shape)
far = np.linalg.norm(found - expected) / np.linalg.norm(expected)
same = (found.argmax(1) == expected.argmax(1)).mean()
print(f"{runtime}: logits {far:.1e} off, classes equal in {100 * same:.3f} %")
sys.exit(not (far <= 1e-4 and same >= 0.9999))
