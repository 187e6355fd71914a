"""Operations of a service from what it publishes about itself: OpenAPI documents and protobuf descriptors.

Documents become ``model.Found``; ``merge.merge`` puts these into the text of a service file and changes nothing else
there. Begin with ``openapi.read_openapi`` or ``protobuf.read_protobuf``. Nothing here says how sensitive an operation
is, unless the document does: who imports decides that afterwards, and until then the operation is refused to everybody.
"""
