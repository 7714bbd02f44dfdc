"""Columns without pandas."""

from __future__ import annotations

import subprocess
import sys
import textwrap

PROGRAM = textwrap.dedent("""
    import sys
    from infra import process

    def main(settings, health):
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        assert pa.array(np.arange(3)).to_numpy().tolist() == [0, 1, 2]
        assert pa.array(np.array([1.5, 2.5]), mask=np.array([True, False])).to_pylist() == [None, 2.5]
        assert pa.array(np.array(["x"])).to_pylist() == ["x"]
        assert pc.is_in(pa.array(["a", None]), pa.array(["a"])).to_pylist() == [True, False]
        assert pa.array([True]).to_numpy(zero_copy_only=False).tolist() == [True]
        assert str(pa.array([1]).cast(pa.timestamp("ms", "UTC")).to_pylist()[0].year) == "1970"
        print("pandas" in sys.modules)

    process.run("processor", "test", main)
""")


def test_a_process_of_ours_converts_columns_without_importing_pandas() -> None:
    """Its first batch is not held up by an import that nothing of it needs."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["False"]), done.stderr
