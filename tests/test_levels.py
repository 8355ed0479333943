"""The instruction set level: chosen at import, or by name."""

import platform

import pytest

import schuss
from support.execution import execution
from support.processes import ends_well, script

LEVELS = schuss.available_simd()


def test_the_baseline_is_always_there_and_the_best_level_is_taken() -> None:
    assert LEVELS[0] == "baseline"
    assert ends_well("import schuss; print(schuss.simd())", SCHUSS_SIMD="").strip() == LEVELS[-1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names levels of x86-64")
def test_what_the_processor_tells_of_itself_is_what_is_available() -> None:
    try:
        with open("/proc/cpuinfo") as file:
            flags = set(file.read().split())
    except FileNotFoundError:
        pytest.skip("no /proc/cpuinfo")
    expected = ["baseline"]
    if {"avx2", "f16c"} <= flags:
        expected.append("avx2")
    if {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"} <= flags:
        expected.append("avx512")
    assert expected == LEVELS


@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_names_a_level(level: str) -> None:
    assert ends_well("import schuss; print(schuss.simd())", SCHUSS_SIMD=level).strip() == level


@pytest.mark.parametrize("level", ["avx9", "AVX2", "neon"])
def test_an_unknown_level_in_the_environment_is_an_error_that_lists_the_levels(level: str) -> None:
    result = script("import schuss", SCHUSS_SIMD=level)
    assert result.returncode != 0
    assert f"ValueError: SCHUSS_SIMD is '{level}'" in result.stderr
    assert f"available: {', '.join(LEVELS)}" in result.stderr


@pytest.mark.parametrize("level", LEVELS)
def test_set_simd_takes_a_level_and_an_unknown_one_changes_nothing(level: str) -> None:
    with execution():  # restores the level
        schuss.set_simd(level)
        with pytest.raises(ValueError, match=r"set_simd: level is 'mmx': .*available: baseline"):
            schuss.set_simd("mmx")
        assert schuss.simd() == level


def test_show_config_tells_what_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    config = schuss.show_config("dicts")
    assert config["simd"] == schuss.simd()
    assert config["available simd"] == ", ".join(LEVELS)
    schuss.show_config()
    printed = capsys.readouterr().out
    assert all(value in printed for value in config.values())
    with pytest.raises(ValueError, match="show_config: mode is 'json'"):
        schuss.show_config("json")  # type: ignore[call-overload]


def test_importing_schuss_loads_none_of_the_extras() -> None:
    extras = "matplotlib", "rich", "sklearn", "tqdm", "torch", "scipy", "hypothesis"
    code = f"import schuss, sys; print([m for m in {extras} if m in sys.modules])"
    assert ends_well(code).strip() == "[]"
