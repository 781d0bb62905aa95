"""OpenAI's wire in, the same wire out, one record in the book; and the admin door on a Unix socket."""
