// Package v20170312 stands in for the VPC client of Tencent Cloud's SDK: every call of it fails, so that flanneld's backend
// tencent-vpc ends with an error instead of doing half of its work.
package v20170312

import "errors"

// ErrNoSDK is what every call returns.
var ErrNoSDK = errors.New("this flanneld is built without Tencent Cloud's SDK")

// Client does nothing.
type Client struct{}

// Filter, Route, RouteTable: what requests and responses are made of.
type (
	Filter struct {
		Name   *string
		Values []*string
	}
	Route struct {
		DestinationCidrBlock, GatewayType, GatewayId, RouteType *string
		Enabled                                                 *bool
		RouteId                                                 *uint64
	}
	RouteTable struct {
		RouteTableId *string
		RouteSet     []*Route
	}
)

// The requests.
type (
	DescribeRouteTablesRequest struct{ Filters []*Filter }
	DeleteRoutesRequest        struct {
		RouteTableId *string
		Routes       []*Route
	}
	CreateRoutesRequest struct {
		RouteTableId *string
		Routes       []*Route
	}
)

// The responses: none is ever given.
type (
	DescribeRouteTablesResponse struct {
		Response *struct{ RouteTableSet []*RouteTable }
	}
	DeleteRoutesResponse struct{}
	CreateRoutesResponse struct{}
)

// NewClientWithSecretId makes a client; the credentials are dropped.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return &Client{}, nil }

// NewDescribeRouteTablesRequest makes an empty request.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

// NewDeleteRoutesRequest makes an empty request.
func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }

// NewCreateRoutesRequest makes an empty request.
func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

// DescribeRouteTables fails.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, ErrNoSDK
}

// DeleteRoutes fails.
func (*Client) DeleteRoutes(*DeleteRoutesRequest) (*DeleteRoutesResponse, error) {
	return nil, ErrNoSDK
}

// CreateRoutes fails.
func (*Client) CreateRoutes(*CreateRoutesRequest) (*CreateRoutesResponse, error) {
	return nil, ErrNoSDK
}
