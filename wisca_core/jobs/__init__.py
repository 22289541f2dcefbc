"""Long work outside the asking process: a job is a folder under WISCA_HOME/jobs and a subprocess.

The state of a job is what its folder says, so a browser tab, a second server and the command line see the same, and
none of them has to stay alive:

    spec.json     what was asked: kind, arguments, title, exclusive key, time of creation; never changed
    lock          held by the worker for its whole life; says who holds it
    status.json   queued | running | done | failed | cancelled, step, done, total, times, error; replaced by rename
    cancel        marker: somebody asked the job to stop
    result.json   what the work returned, once it is done
    log.txt       what the worker printed, tracebacks included

A worker that ended without a word (killed, out of memory, machine restarted) leaves an unfinished status and a free
lock: that reads as "lost". A folder that cannot be understood reads as "damaged". Nothing here trusts a process number
alone.
"""

from wisca_core.jobs.control import cancel, remove, start
from wisca_core.jobs.kinds import KINDS
from wisca_core.jobs.state import ACTIVE, Job, every, read, wait

__all__ = ["ACTIVE", "KINDS", "Job", "cancel", "every", "read", "remove", "start", "wait"]
