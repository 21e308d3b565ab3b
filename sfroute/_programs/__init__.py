"""The programs for gateways and pods in other languages: ``sfroute serve`` and ``sfroute agent``.

Their HTTP interfaces are ASGI applications over ``AsyncRouter`` and ``AsyncPodAgent``; uvicorn serves them.
"""
