"""How long a job takes to end, and what remains after it."""

import time

from test_launcher import launch, script  # noqa: F401  (a fixture)


def test_a_stopped_rank_is_not_waited_for(script):  # noqa: F811
    """Catches seconds of grace for a rank that is stopped (SIGSTOP) and therefore does not react to SIGTERM."""
    path = script(
        """
        import os, signal, sys, time
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)
        time.sleep(0.5)
        print(time.time(), flush=True)
        sys.exit(9)
        """
    )
    done = launch("--num_gpus=2", "--no_local_rank", path)
    took = time.time() - float(done.stdout.split()[-1])
    assert done.returncode == 9, done.stderr
    assert "did not end in time" not in done.stderr
    assert took < 2.0
