package device

import "os"

// The tests of the library run on the data path that the builder chooses.
func init() { defaultInline = os.Getenv("MESHRAY_DATA_PATH") == "inline" }
