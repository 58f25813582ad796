"""What `distkv launch` would start here can be read first; what is wrong is told once."""

import pytest

from distkv_jax.cli.main import main


def test_dry_run_prints_the_command_of_every_rank(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--hosts", "2", "--dry-run", "tiny", "--mesh", "cpu-2"]) == 0

    begin = "distkv serve tiny --mesh cpu-2 --coordinator 127.0.0.1:PORT --num-hosts 2"
    assert capsys.readouterr().out.splitlines() == [
        f"{begin} --host-rank {rank} --join-token-file TOKEN_FILE" for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hosts", "1"], "hosts=1 must be at least 2"),
        (["--hosts", "2", "--max-restarts", "-1"], "max_restarts=-1 must be at least 0"),
        (
            ["--slurm", "--hosts", "2", "--max-restarts", "1"],
            "--max-restarts is for --hosts alone or --ssh, which was not given",
        ),
        (["--hosts", "2", "tiny", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
    ],
)
def test_what_is_wrong_is_told_once(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main(["launch", *words])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert capsys.readouterr().err.count(told) == 1
