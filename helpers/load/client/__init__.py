"""The timed part of a load test, small enough to check. How a token gets its time:

1. ``transport.Connection.data_received`` is called for each read of a socket. It reads the clock,
   once, and keeps the bytes with that time. ``Connection.read`` has httptools take the framing off
   later, and each piece of the answer's body gets the time of its read. ``Exchange.sent`` was read
   just before the request's bytes were written.
2. When the answer is over, ``reading.read`` decodes the server-sent events (``answer``). A token's
   time is that of the read which completed its event. How many tokens there were the server says.
3. What could make a time late is measured: ``eventloop.LagProbe`` sends the event loop bytes and
   sees how long they wait for their stamp. Garbage collection is off while requests are under way.
"""
