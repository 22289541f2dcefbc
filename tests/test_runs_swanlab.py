"""SwanLab's run files. The bytes are what its version 0.10.3 wrote, offline; it cannot be installed beside protobuf
7.
"""

import base64
import math
import zlib

import pytest

from wisca_core.errors import UnreadableInput
from wisca_core.runs import Logs, read
from wisca_core.runs.groups import seed_of

# swanlab.init(project="sweep", experiment_name="trial-2", config=...); log({"train/loss": 2 / (k + 1)}, step=10 * k)
# for k of 4; log({"bad": nan}, step=5); log({"note": Text("hello")}, step=6); finish()
WRITTEN = zlib.decompress(
    base64.b85decode(
        "c-pm;TSyd97{{I2i{oguEEOgcgFR%%?#^X*-"
        "8I6f=plm2$}TT?X7{X)?atcF=qdzVh_W8K(SsF~Wy$uGVUQ1HFKZXNSwToaSx`wSSqov=?VQb>8L*(B&cm|9`ToD(cRmiMeD%8JkDik~U8J@whoHV^"
        "7vapO+Rk0-w>w&UUj!;y+NLHTtS`>h6bVFK{IcBHeh9@fv63ol=3zsk*)L`jH%{F2m2ZgkRwLk716VM=-"
        "GA$TCwZD!Lfb=eIU?0K10F3_?@=0L75}(+miKd<z;5D#J|D-svV2cOibB=%Gvsatv1kdw$m@hC(tMeyX?gPMEz+!{sTkBi7-+z`=&wX-"
        "0?1Jyy0US1of?-"
        "*$T{Z+!<&(E>=!3{`UWdk&;<(I(jX}?24zikF8C|0IqKG$v=WPZ>nnQ|G8&@pzE2;>oy20A8*j3lS)+i^W=XDLkb+4_S}ila#WX@imEtnPx;fS@6lE"
        "C$w+BCv4ABJ0Dfl>~4j;Vo8N=7pOLh3j$-_NNB?99)Fe+$-VFqZ-pPfrL9=!M#8A<u_`@N0GXfftClre_rRl4!Tu~YB54`iIx*@LLfa_A48)r=O;)a"
        "&xLokK`&3ACR{xscqd%RAf0u)K(-v|35U<I^+Ab2wv7wbLEAVViNc9*_O^hCBPP-"
        "1arKXFqP(uFDVZ`0~4k``+P<{m938b@NarSI@Lv+Lb2785H3_IZXkQ?1{!zwbYjR&stKCdxwH3LFtLseY?|S-"
        "5lCfT}Tw`J*2L_Crk74a(=Fb9Vc4a=A(R`(d7Wn&o$>Aw29Dq{g#O^Qc*f%+jLBzjZ5CKX98iWi7<NVPKK~HvtCwc7ZOdFkgpR4h9(kbnFxb-"
        "?wWcSsJOD^*`%3>P@of%4_eUN@-uU@h#<^b9MdS-"
        "i)tnrvrX<rmSP(3J8UL=|EGH<{OGo6!<$~uLea^3bR@YS;R_JnT4a^u8e}c5;llP^sA!5&boM}+R1`W>;IJ23jsANcBEfpPigvK9-^GU_yf-WY{AxH"
        "CX1{z9kp%(^c|QyYA`e17F$nn}<V4QTL0^cAfHE)dgJlBi6$C#Y6ar!}z<UdALjByF-"
        "@M_Y*AAus)f?WmU19NU{WejPJbFA$ZgfzDe#5(mkEY2V$uDF+"
    )
)
SETTINGS = """lr: {desc: '', sort: 0, value: 0.1}
model: {desc: '', sort: 2, value: {width: 64}}
seed: {desc: '', sort: 1, value: 2}
"""


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "swanlog" / "run-20261130_1-abc"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "config.yaml").write_text(SETTINGS)
    (folder / "files" / "metrics.csv").write_text("step,loss\n0,1\n")  # what lies beside a run file is of the same run
    (folder / "run-abc.swanlab").write_bytes(WRITTEN)
    return folder / "run-abc.swanlab"


def test_a_run_with_its_name_its_settings_and_its_steps(path, tmp_path):
    for where in (path, tmp_path):
        (run,) = read([where]).runs
        assert run.name == "trial-2" and run.kind == "swanlab"
        assert run.series["train/loss"].step.tolist() == [0, 10, 20, 30]
        assert run.series["train/loss"].value.tolist() == [2.0, 1.0, 2 / 3, 0.5]
        assert (run.series["train/loss"].wall_time > 1.7e9).all() and math.isnan(run.series["bad"].value[0])
        assert dict(run.config) == {"lr": 0.1, "model.width": 64, "seed": 2} and seed_of(run) == "2"
        assert any("no single number" in remark for remark in run.remarks)


def test_a_file_that_is_still_written_gives_what_is_whole(path):
    path.write_bytes(WRITTEN[:1200])
    logs = Logs([path])
    logs.poll()
    before = len(logs.runs[0].series["train/loss"].step) if logs.runs[0].series else 0
    with path.open("ab") as file:
        file.write(WRITTEN[1200:])
    assert logs.poll()
    assert before < 4 == len(logs.runs[0].series["train/loss"].step)


def test_another_version_is_refused_by_name(path):
    path.write_bytes(WRITTEN[:6] + b"\x09" + WRITTEN[7:])
    with pytest.raises(UnreadableInput, match="named .swanlab, but does not begin as one does"):
        read([path])


def test_a_damaged_record_costs_itself_only(path):
    at = WRITTEN.index(b"train/loss", WRITTEN.index(b"train/loss") + 40)
    path.write_bytes(WRITTEN[:at] + b"T" + WRITTEN[at + 1 :])
    (run,) = read([path]).runs
    assert len(run.series["train/loss"].step) == 3 and any("damaged" in remark for remark in run.remarks)
