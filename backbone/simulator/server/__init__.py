"""How the embedded exchange answers: HTTP, WebSocket, limits, faults and its clock."""
