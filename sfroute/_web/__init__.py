"""What the doors ``asgi``, ``wsgi`` and ``fastapi`` are made of: whose a request is, and what it is answered.

The headers between a gateway and its pods:

- ``X-Sfroute-Uid``, in a request to a pod: the uid, percent-encoded.
- ``X-Sfroute-Service``, in a pod's 421: the service that the pod belongs to, percent-encoded; ``X-Sfroute-Owner``: the
  pod that has the user, as far as it is known; ``X-Sfroute-Left``: the pod has stopped, and has nobody.

A gateway removes all that begin so from what clients send. Pods believe them: let nobody but gateways reach pods.
"""
