"""Limits on what a peer or a file may ask for, each with its reason."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30

#: A control message holds evidence (a quote is under 8 KiB) or a grant: small by nature.
CONTROL_MESSAGE_BYTES_MAX = 1 * MIB
#: One record's plaintext. The channel benchmark goes to 16 MiB; nothing needs more,
#: since longer messages are sent as several records.
RECORD_PLAINTEXT_BYTES_MAX = 16 * MIB
#: What the data plane puts into one record: ciphertext of this size stays in a core's L2 cache
#: between the socket and the cipher.
RECORD_FRAGMENT_BYTES = 1 * MIB
#: What a hop's record buffer holds beyond one fragment: header, tag, bytes read ahead.
RECORD_SLACK_BYTES = 66 << 10
#: A sealed chunk of a vault: large enough for full AES-GCM speed, and small enough that its
#: ciphertext and plaintext stay in a core's L2 cache between the file, the cipher and the engine.
VAULT_CHUNK_BYTES_MAX = MIB // 2
#: A stage program with its step graphs, without weights (densenet121 whole: under 1 MiB).
PROGRAM_BYTES_MAX = 64 * MIB
#: Stages of one plan; hops are numbered one more.
STAGES_MAX = 64
#: Devices that run one stage in turn: a worker keeps one connection to each of its neighbours.
REPLICAS_MAX = 16
#: The tensors of a stage, those inside its steps too (densenet121 whole: about 250).
TENSORS_PER_STAGE_MAX = 1 << 16
#: One tensor, and the tensors of one frame on one hop together.
TENSOR_BYTES_MAX = 8 * GIB
FRAME_BYTES_MAX = 1 * GIB
#: Frames that one pass may carry and that one queue may hold.
FRAMES_PER_PASS_MAX = 64
QUEUE_FRAMES_MAX = 256
