"""Entry of the dashboard: ``streamlit run app/main.py``."""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from wisca_app.downloads import ROUTES
from wisca_app.gate import Gate

# A page elsewhere that makes its name point at 127.0.0.1 (DNS rebinding) must not read weights through this server.
HOSTS = ["localhost", "127.0.0.1"]

app = st.App(
    Path(__file__).with_name("dashboard.py"),
    routes=ROUTES,
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False), Middleware(Gate)],
)
