"""Text encoders: captions in, token states and their mask out (types.EncodedText)."""
