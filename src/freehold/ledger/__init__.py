"""The book: keys, usage, occupancy, pins and hash-chained events, with a journal of requests in flight."""
