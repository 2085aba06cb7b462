// Package common stands in for Tencent Cloud's SDK, which flanneld's main program links for its backend tencent-vpc and
// which the module proxy does not always have. It has what that backend compiles against, and nothing else.
package common

// StringPtr returns a pointer to a copy of value.
func StringPtr(value string) *string { return &value }

// StringPtrs returns a pointer to a copy of each of values.
func StringPtrs(values []string) []*string {
	pointers := make([]*string, 0, len(values))
	for _, value := range values {
		pointers = append(pointers, &value)
	}
	return pointers
}

// BoolPtr returns a pointer to a copy of value.
func BoolPtr(value bool) *bool { return &value }
