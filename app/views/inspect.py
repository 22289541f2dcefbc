"""Inspect: is this model out of balance, and where?"""

from wisca_app import state
from wisca_app.declaring import notices as declaration
from wisca_app.inspecting import coverage, explore, overview
from wisca_app.open_model import ready
from wisca_app.opening import lists

model = ready([state.get("pair")])
if model.refusal or not model.sites.sites:
    coverage.draw_refused(model)
    state.stop()
overview.draw(model)
declaration.line(model)
lists.remember(model)
explore.draw(model)
