"""A directory on threads: Flask says where a user's pod is, and the client goes there itself.

    SFROUTE_URL=redis+cluster://10.0.0.1:6379 python examples/flask_directory.py [PORT]

    $ curl -H 'X-User-Id: ada' http://127.0.0.1:8000/where
    {"pod":2,"address":"chat-2.chat:8080"}

One `Router` serves all threads of a process. For known users the answer comes in the thread of the request.
"""

from __future__ import annotations

import os
import sys

from flask import Flask, Response, jsonify, request

from sfroute import InvalidArgument, NoRoutablePod, Router, StoreError

NAMESPACE, SERVICE = "example", "chat"


def create_app(router: Router) -> Flask:
    app = Flask(__name__)

    @app.get("/where")
    def where() -> Response | tuple[str, int]:
        link = router.route(NAMESPACE, request.headers.get("X-User-Id", ""), SERVICE)
        return jsonify(pod=link.pod, address=f"{SERVICE}-{link.pod}.{SERVICE}:8080")

    # The texts of the errors are for operators; neither these nor those hold the uid.
    @app.errorhandler(InvalidArgument)
    def nobody(_error: InvalidArgument) -> tuple[str, int]:
        return "the header X-User-Id must name a user\n", 400

    @app.errorhandler(NoRoutablePod)
    @app.errorhandler(StoreError)
    def not_now(_error: Exception) -> tuple[str, int, dict[str, str]]:
        return "try again soon\n", 503, {"Retry-After": "1"}

    return app


if __name__ == "__main__":
    with Router.from_url(os.environ["SFROUTE_URL"]) as shared:
        # For the example. In production any WSGI server with threads; with processes, one Router in each.
        port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
        create_app(shared).run("127.0.0.1", port, threaded=True)
