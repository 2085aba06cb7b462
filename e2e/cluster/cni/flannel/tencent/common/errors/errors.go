// Package errors has the error that the SDK's calls return.
package errors

// TencentCloudSDKError is what the service answers when it refuses a request.
type TencentCloudSDKError struct{ Message string }

func (e *TencentCloudSDKError) Error() string { return e.Message }
