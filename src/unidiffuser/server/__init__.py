"""The server: the library over HTTP, and a page to see it with.

Two processes, so that neither can stall or kill the other:

    web      HTTP, admission, the queue, history in SQLite and files, the page. It never imports torch
    worker   the models. It knows jobs as plain values, and answers with events; one a device

What they say to each other is JSON (`worker`), so a worker can as well be a Ray replica (`replicas`).
"""
